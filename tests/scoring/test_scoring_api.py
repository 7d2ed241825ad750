"""``vf.score`` and ``Scorer``: images in memory, arrays by reward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scoring_bench import pictures, png

import visfeedback as vf
from visfeedback.plugins import InputError
from visfeedback.rewards import score
from visfeedback.scoring import tables
from visfeedback.scoring.api import Scorer


def test_pictures_paths_and_bytes_with_one_prompt(toy, tmp_path: Path) -> None:
    images = pictures(3)
    (tmp_path / "a.png").write_bytes(png(images[0]))
    mixed = [images[0], tmp_path / "a.png", str(tmp_path / "a.png"), png(images[1])]
    found = vf.score(mixed, "a red circle", rewards=[toy()])
    plain = score(toy(), [images[0]] * 3 + [images[1]], ["a red circle"] * 4)
    assert np.allclose(found["toy"], plain.numpy(), atol=1e-6)
    assert found.images == ["image 0", str(tmp_path / "a.png"), str(tmp_path / "a.png"), "image 3"]
    assert len(found) == 4


def test_as_many_prompts_as_images_are_pairs_and_others_need_a_word(toy) -> None:
    images, prompts = pictures(3), ["a", "b", "c"]
    assert vf.score(images, prompts, [toy()])["toy"].shape == (3,)
    matrix = vf.score(images, prompts[:2], [toy()], pairing="matrix")
    assert np.allclose(matrix["toy"], score(toy(), images, prompts[:2], "matrix").numpy(), atol=1e-6)
    with pytest.raises(InputError, match="--pairing"):
        vf.score(images, prompts[:2], [toy()])
    with pytest.raises(InputError, match="3 images and 2 prompts"):
        vf.score(images, prompts[:2], [toy()], pairing="paired")


def test_a_folder_brings_its_prompts(folder: Path, toy) -> None:
    found = vf.score(folder, rewards=[toy()])
    assert found.prompts[:2] == ["a red circle", "two blue squares"]
    assert np.isfinite(found["toy"]).all()


def test_rows_and_table_have_the_columns_of_the_command(toy) -> None:
    found = vf.score(pictures(2), "x", rewards=[toy(), toy("b", encoder="b")])
    rows = list(found.rows())
    assert len(rows) == 4
    assert list(rows[0]) == list(tables.COLUMNS)
    assert found.table().to_pylist() == rows
    assert len(list(vf.score(pictures(2), ["x", "y", "z"], [toy()], pairing="matrix").rows())) == 6


def test_it_says_what_it_is(toy) -> None:
    text = repr(vf.score(pictures(3), "x", rewards=[toy(), toy("other", encoder="b")]))
    assert text.startswith("3 scores\n  toy    mean ")
    assert "other  mean" in text
    with pytest.raises(KeyError, match="there are toy"):
        vf.score(pictures(1), "x", rewards=[toy()])["hpsv2"]


def test_bad_images_are_not_a_number(toy, tmp_path: Path) -> None:
    found = vf.score([pictures(1)[0], b"", tmp_path / "gone.png"], "x", rewards=[toy()])
    assert np.isfinite(found["toy"]).tolist() == [True, False, False]
    assert [one["image"] for one in found.failed] == ["image 1", str(tmp_path / "gone.png")]
    assert len(list(found.rows())) == 1
    assert "2 failed" in repr(found)


@pytest.mark.parametrize(
    ("images", "prompts", "said"),
    [([], "x", "no images"), ([3], "x", "image 0 is a int"), (["a.png"], None, "no image has a prompt")],
)
def test_what_cannot_be_scored(toy, images, prompts, said: str) -> None:
    with pytest.raises(InputError, match=said):
        vf.score(images, prompts, rewards=[toy()])


def test_a_scorer_encodes_an_image_once_in_its_life(toy) -> None:
    """Nine images, two of them alike, three calls: eight encodings."""
    reward = toy()
    scorer = Scorer([reward])
    images = [*pictures(8), pictures(1)[0]]
    first = scorer.score(images, "a")
    second = scorer.score(images, ["b", "c"], pairing="matrix")
    assert sum(reward.batches) == 8
    assert reward.prompts == ["a", "b", "c"]
    assert np.allclose(second["toy"], score(toy(), images, ["b", "c"], "matrix").numpy(), atol=1e-6)
    assert first["toy"].shape == (9,)


def test_pictures_that_differ_in_palette_or_mode_are_different(toy) -> None:
    grey = Image.new("L", (4, 4), 100)
    one, two = (Image.new("P", (4, 4), 0) for _ in range(2))
    one.putpalette([255, 0, 0])
    two.putpalette([0, 0, 255])
    reward = toy()
    found = vf.score([grey, grey.convert("RGB"), one, two, one.copy()], "x", rewards=[reward])
    assert sum(reward.batches) == 4
    assert found["toy"][2] == found["toy"][4] != found["toy"][3]
