"""Batches of scored images: rounds that teach nothing, shares of processes, passes, and whose scores a table holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from toy_training import Brightness, Darkness, toy_settings

from tests.support.tiny_backbone import TinyBackbone
from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.training.cache import Live
from visfeedback.training.fit import fit
from visfeedback.training.rounds import Rounds
from visfeedback.training.run import Run, read_metrics
from visfeedback.training.scored import OneSet, ScoredBatches, ScoredSet
from visfeedback.training.setup import prepare
from visfeedback.types.protocols import silent


def batches_of(settings, folder: Path) -> ScoredBatches:
    return prepare(settings, Run(folder), False, silent).stepper.batches


def write_images(folder: Path) -> Path:
    """Four images of two prompts, each brighter than the one before; nobody has scored them."""
    random, rows = numpy.random.default_rng(0), []
    for i in range(4):
        pixels = random.integers(0, 64 * (i + 1), (16, 16, 3)).astype(numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": f"p{i // 2}"})
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "images.jsonl"


# rounds


@pytest.mark.parametrize("method", ["raft", "rwr"])
def test_a_round_in_which_nothing_differs_is_passed_over(online, tmp_path, reward, monkeypatch, method):
    """Rounds of one step; the second one's images score alike, so the second step has no loss and no gradient, not even
    of the real images, and the third learns again."""
    draw = Rounds._draw

    def drawn(self, number):
        reward.spoil = (lambda scores: scores * 0 + 1) if number == 1 else (lambda scores: scores)
        return draw(self, number)

    monkeypatch.setattr(Rounds, "_draw", drawn)
    real = {"real": str(write_images(tmp_path))}
    wanted = online(method, method={"beta": 1.0}, data=real, rollout={"every": 1}, optim={"steps": 3})
    with pytest.warns(UserWarning, match="round 1: brightness sets none of 4 images apart"):
        fit(wanted, tmp_path / "run")
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    learned = {"raft": 2, "rwr": 4}[method]
    assert [row["images_with_weight"] for row in rows] == [learned, 0, learned]
    assert [row["grad_norm"] > 0 for row in rows] == [True, False, True] and rows[1]["loss"] == 0


def test_stored_images_without_anything_to_learn_are_an_error(online, tmp_path):
    """There is no later round; the prompts differ and their images do not."""
    file = write_images(tmp_path)
    rows = [{**json.loads(line), "score": i // 2} for i, line in enumerate(file.read_text().splitlines())]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="every image within its prompt the same score"):
        fit(online("raft", data={"images": str(file)}, reward={"name": ""}), tmp_path / "run")


def test_a_prompts_only_image_is_refused_before_anything_is_drawn(online, tmp_path, reward):
    wanted = online("rwr", method={"over": "prompt"}, rollout={"per_prompt": 1, "prompts_per_round": 4})
    with pytest.raises(InputError, match=r"rwr compares images of a prompt and needs 2 or more.*--rollout\.per-prompt"):
        fit(wanted, tmp_path / "run")
    assert reward.asked == 0


@pytest.mark.parametrize(
    ("method", "knobs", "steps"),
    [("raft", {}, 3), ("raft", {"best": 2}, 6), ("rwr", {}, 12), ("rwr", {"weighting": "sparse", "over": "prompt"}, 3)],
)
def test_epochs_are_passes_over_the_images_that_are_learned(online, tmp_path, method, knobs, steps):
    """3 passes over a round of 2 prompts x 4 images in batches of 2: 12 steps over all 8, and 3 where one of four is
    kept; each kept image then comes three times."""
    wanted = online(method, method=knobs, rollout={"per_prompt": 4, "epochs": 3})
    batches = batches_of(wanted, tmp_path)
    assert batches.per_round == steps
    seen = Counter(score for step in range(steps) for score in batches.batch(step).scores.tolist())
    assert set(seen.values()) == {3} and len(seen) == steps * 2 // 3


# processes


def process_with(count: int, kept: list[int], tiny: TinyBackbone) -> ScoredBatches:
    """A process that keeps ``count`` images of its round of four, among processes that keep ``kept``."""
    shape, weight = (2, 2, 2), (torch.arange(4) < count).float()
    moments = Live(lambda keys: {"mean": torch.zeros(len(keys), *shape), "std": torch.zeros(len(keys), *shape)})
    names = [f"{count}-{row}" for row in range(4)]
    images = ScoredSet(names, ["p"] * 4, [""] * 4, torch.zeros(4).long(), torch.arange(4.0), weight, moments,
                       tiny.encode_text, {"reward": 0.5})  # fmt: skip
    settings = toy_settings("raft", "model", optim={"batch_size": 3})
    return ScoredBatches(
        OneSet(images), settings, tiny.process, per_round=1, processes=len(kept), gather=lambda mine: kept
    )


def test_an_image_counts_alike_on_whichever_process_it_was_drawn():
    """Two processes keep 1 and 3 images, so their shares are 1 * 2 / 4 = .5 and 3 * 2 / 4 = 1.5. In a step of 3 rows
    the first shows its image three times: .5 * 3 / 3 / 2 processes = 1/4, as 1.5 * 1 / 3 / 2 = 1/4 for the others."""
    tiny, part = TinyBackbone(), {}
    for count, share in ((1, 0.5), (3, 1.5)):
        batch = process_with(count, [1, 3], tiny).batch(0)
        assert batch.share == share
        for score, times in Counter(batch.scores.tolist()).items():
            part[count, score] = batch.share * times / 3 / 2
    assert part == pytest.approx({(1, 0.0): 0.25, (3, 0.0): 0.25, (3, 1.0): 0.25, (3, 2.0): 0.25})


def test_a_process_without_a_kept_image_adds_nothing():
    """Of 0 and 2 kept images the mean over processes is that of the second's: shares 0 and 2 * 2 / 2 = 2."""
    tiny = TinyBackbone()
    none, some = process_with(0, [0, 2], tiny), process_with(2, [0, 2], tiny)
    assert none.batch(0).share == 0 and len(none.batch(0).scores) == 3 and some.batch(0).share == 2
    assert none.facts == {"reward": 0.5, "images_with_weight": 2} == some.facts
    assert process_with(0, [0, 0], tiny).batch(0).share == 0


# scores


def test_scores_of_another_reward_are_never_taken(tiny_sd, tmp_path, monkeypatch):
    """A run fails after its images were scored and is repeated in the same folder with another reward: that keeps the
    darker image of each prompt, as in a folder of its own, and not the brighter one."""
    both = {"brightness": Brightness(), "darkness": Darkness()}
    monkeypatch.setattr(rewards, "load", lambda name, device="cpu", dtype="fp32": both[name])
    file = str(write_images(tmp_path))

    def wanted(name: str, **changes):
        return toy_settings("raft", tiny_sd, data={"images": file}, reward={"name": name}, **changes)

    with pytest.raises(InputError, match=r"no image passes method\.floor = 5"):
        fit(wanted("brightness", method={"floor": 5.0}), tmp_path / "run")
    again, fresh = (batches_of(wanted("darkness"), tmp_path / name)._sets.of(0) for name in ("run", "fresh"))
    assert torch.equal(again.scores, fresh.scores) and again.weight.tolist() == [1, 0, 1, 0]


def test_what_names_a_table_of_scores(tiny_sd, tmp_path, monkeypatch):
    """Its reward, the checkpoint found under that name, the precision, the preprocessing, and who only looks on. Every
    run fails after scoring, so that the next one may use its folder."""
    one = Brightness()
    monkeypatch.setattr(rewards, "load", lambda name, device="cpu", dtype="fp32": one)
    file = str(write_images(tmp_path))

    def asked(**reward) -> int:
        before = one.asked
        wanted = toy_settings("raft", tiny_sd, method={"floor": 5.0}, data={"images": file}, reward=reward)
        with pytest.raises(InputError, match="no image passes"):
            batches_of(wanted, tmp_path / "run")
        return one.asked - before

    assert asked() == 1 and asked() == 0
    assert asked(watch="other") == 2 and asked(watch="other") == 0 and asked(watch="third") == 2
    for changed in ({"checkpoint_sha256": "b"}, {"revision": "2"}, {"dtype": "bf16"}):
        one.origin = one.origin.model_copy(update=changed)
        assert asked() == 1 and asked() == 0
    one.preprocessing = "bgr"
    assert asked() == 1 and asked() == 0
