"""Pairs from files and stores, and their pictures."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from visfeedback.plugins import InputError
from visfeedback.training.data import load_pairs, pixels, split
from visfeedback.training.settings import Data


def test_pairs_of_a_file(pairs_file):
    """Six rows: a, b, .9, a, tie, .2. The tie is dropped; b and .2 are turned, so 5b wins, against 0a."""
    pairs = load_pairs(Data(pairs=str(pairs_file)))
    folder = pairs_file.parent
    assert [Path(p.winner_path).name for p in pairs] == ["0a.png", "1b.png", "2a.png", "3a.png", "5b.png"]
    assert [p.probability for p in pairs] == [1.0, 1.0, 0.9, 1.0, 0.8]
    assert pairs[4].loser == pairs[0].winner, "one image in two rows has one name"
    assert len({p.id for p in pairs}) == 5 and all(Path(p.loser_path).parent == folder for p in pairs)
    assert len(load_pairs(Data(pairs=str(pairs_file), ties="keep"))) == 6


def test_a_comparison_that_occurs_twice_has_two_draws(pairs_file, tmp_path):
    line = pairs_file.read_text().splitlines()[0].replace('"0', f'"{pairs_file.parent}/0')
    (tmp_path / "pairs.jsonl").write_text(f"{line}\n{line}\n")
    first, second = load_pairs(Data(pairs=str(tmp_path / "pairs.jsonl")))
    assert first.winner == second.winner and first.id != second.id


def test_nothing_to_learn_says_why(tmp_path, pairs_file):
    line = pairs_file.read_text().splitlines()[4].replace('"4', f'"{pairs_file.parent}/4')
    (tmp_path / "ties.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"ties.jsonl holds no preferences \(left out: 1 tie\)"):
        load_pairs(Data(pairs=str(tmp_path / "ties.jsonl")))
    with pytest.raises(InputError, match="nothing to learn from"):
        load_pairs(Data())
    with pytest.raises(InputError, match="both given"):
        load_pairs(Data(pairs="x", store="y"))


def test_pairs_of_a_store(tmp_path, pairs_file):
    from visfeedback import store
    from visfeedback.types.records import PAIR_VALUES, Feedback, Prompt, Sample, image_id

    prompts = [Prompt.of("red"), Prompt.of("blue")]
    samples = []
    for i, prompt in enumerate(prompts):
        for side in "ab":
            path = pairs_file.parent / f"{i}{side}.png"
            image = Image.open(path).convert("RGB")
            samples.append(
                Sample(id=image_id(16, 16, image.tobytes()), prompt_id=prompt.id, prompt=prompt.text, path=str(path),
                       width=16, height=16)
            )  # fmt: skip

    def said(first, second, choice, criterion="overall"):
        return Feedback(judge="human:ada", criterion=criterion, prompt_id=first.prompt_id,
                        sample_ids=(first.id, second.id), choice=choice, values=PAIR_VALUES[choice])  # fmt: skip

    url = f"sqlite:///{tmp_path / 'prefs.db'}"
    with store.open(url) as opened:
        opened.add_samples(samples)
        opened.add_feedback([said(*samples[:2], "a"), said(*samples[2:], "b"), said(*samples[2:], "a", "style")])
    pairs = load_pairs(Data(store=url))
    found = {(p.prompt, p.winner, p.loser) for p in pairs}
    assert found == {("red", samples[0].id, samples[1].id), ("blue", samples[3].id, samples[2].id)}
    assert all(Path(p.winner_path).is_file() for p in pairs)
    assert [p.winner for p in load_pairs(Data(store=url, criterion="style"))] == [samples[2].id]
    with pytest.raises(InputError, match=r"no preferences for criterion 'fun' \(left out: 3 criterion\)"):
        load_pairs(Data(store=url, criterion="fun"))


def test_split_keeps_prompts_whole(pairs_file):
    pairs = load_pairs(Data(pairs=str(pairs_file)))
    train, held = split(pairs, 0.34)  # 3 prompts: 1 is held out
    assert {p.prompt for p in train}.isdisjoint({p.prompt for p in held}) and len({p.prompt for p in held}) == 1
    assert split(list(reversed(pairs)), 0.34)[1] == list(reversed(held))
    assert split(pairs, 0.0) == (pairs, [])
    with pytest.raises(InputError, match="one side empty"):
        split(pairs, 0.01)


def test_pixels_resize_by_the_short_side_and_crop_the_centre(tmp_path):
    """A 40 x 20 image, left half black and right half white: to 20 px it keeps columns 10 to 30."""
    array = numpy.zeros((20, 40, 3), numpy.uint8)
    array[:, 20:] = 255
    Image.fromarray(array).save(tmp_path / "x.png")
    found = pixels(tmp_path / "x.png", 20, False)
    assert found.shape == (3, 20, 20)
    assert found[:, :, :10].max() == 0 and found[:, :, 10:].min() == 1
    assert torch.equal(pixels(tmp_path / "x.png", 20, True), found.flip(-1))
    assert pixels(tmp_path / "x.png", 10, False).shape == (3, 10, 10)
    assert pixels(tmp_path / "x.png", 33, False).shape == (3, 33, 33)


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"x\.png"):
        pixels(tmp_path / "x.png", 16, False)
