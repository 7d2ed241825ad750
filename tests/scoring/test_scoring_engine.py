"""The engine against `rewards.score`, which is the plain way, and against its own promises: everything once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scoring_bench import pictures, png, run, tasks

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import score
from visfeedback.scoring import decode as decoding
from visfeedback.scoring import feed
from visfeedback.scoring.engine import Engine, pick_device
from visfeedback.scoring.settings import ScoreSettings
from visfeedback.scoring.work import Held, Memory

TEXTS = ["a red circle", "two blue squares", "a green triangle"]


@pytest.mark.parametrize("pairing", ["paired", "matrix"])
def test_equals_the_plain_way_for_the_rewards_of_the_shapes_world(pairing: str, draw) -> None:
    images = [draw(text, n) for n, text in enumerate(TEXTS * 4)]
    loaded = [rewards.load("shapes_clip"), rewards.load("shapes_verifier")]
    own = [(text,) for text in TEXTS * 4] if pairing == "paired" else [tuple(TEXTS)] * 12
    if pairing == "matrix":
        own = [own[0]] * 12
    found = run(loaded, [png(image) for image in images], own)
    for number, reward in enumerate(loaded):
        plain = score(reward, images, TEXTS * 4 if pairing == "paired" else TEXTS, pairing)  # type: ignore[arg-type]
        assert np.allclose(found.scores[number].squeeze(), plain.numpy(), atol=1e-6)


def test_images_of_many_sizes_and_prompts(toy) -> None:
    """Rewards that keep the image's size get batches of one size each; scores come back to their images."""
    reward, images = toy(square=False), pictures(23)
    prompts = [(f"prompt {n % 5}",) for n in range(23)]
    found = run([reward], [png(image) for image in images], prompts)
    plain = score(toy(square=False), images, [own[0] for own in prompts])
    assert np.allclose(found.scores[0][:, 0], plain.numpy(), atol=1e-6)
    assert max(reward.batches) <= 4


def test_everything_is_done_once(toy, monkeypatch) -> None:
    """Two rewards of one encoder and one of another over 10 images, all against 3 prompts.

    Decoded 10 times in all; preprocessed 10 times for each of two preprocessings; encoded 10 times for each of two
    encoders; each prompt encoded once by each reward.
    """
    decoded = []
    monkeypatch.setattr(feed, "decode", lambda data, limit: decoded.append(1) or decoding.decode(data, limit))
    a, b = toy("a"), toy("b")
    c = toy("c", encoder="other", preprocessing="another")
    shared = tuple(TEXTS)
    run([a, b, c], [png(image) for image in pictures(10)], [shared] * 10)
    assert len(decoded) == 10
    assert (a.preprocessed + b.preprocessed, c.preprocessed) == (10, 10)
    assert (sum(a.batches) + sum(b.batches), sum(c.batches)) == (10, 10)
    assert a.prompts == b.prompts == c.prompts == TEXTS
    assert {pairing for pairing, _ in a.combined} == {"matrix"}


def test_same_preprocessing_other_encoder(toy) -> None:
    a, b = toy("a"), toy("b", encoder="other")
    run([a, b], [png(image) for image in pictures(5)], [("x",)] * 5)
    assert (a.preprocessed + b.preprocessed, sum(a.batches), sum(b.batches)) == (5, 5, 5)


def test_other_precision_is_another_encoder(toy) -> None:
    a, b = toy("a"), toy("b", dtype="bf16")
    run([a, b], [png(image) for image in pictures(5)], [("x",)] * 5)
    assert (sum(a.batches), sum(b.batches)) == (5, 5)


def test_batches_are_full(toy) -> None:
    """10 images of one size in batches of 4: 4 + 4 + 2."""
    reward = toy()
    run([reward], [png(image) for image in pictures(10)], [("x",)] * 10)
    assert reward.batches == [4, 4, 2]


def test_a_reward_without_prompt_scores_once_for_all_prompts(toy) -> None:
    reward = toy(reads_prompt=False)
    found = run([reward], [png(image) for image in pictures(3)], [(None,), ("a", "b"), ("c",)])
    assert np.isfinite(found.scores[0][[0, 1, 1, 2], [0, 0, 1, 0]]).all()
    assert found.scores[0][1, 0] == found.scores[0][1, 1]
    assert reward.prompts == [""]


def test_a_missing_prompt_is_a_failure_of_those_who_read_it(toy) -> None:
    found = run([toy(), toy("blind", reads_prompt=False)], [png(pictures(1)[0])], [(None,)])
    assert list(found.errors) == [(0, 0, 0)]
    assert "no prompt for this image" in found.errors[0, 0, 0]
    assert np.isfinite(found.scores[1][0, 0])


def test_bad_images_fail_alone(toy) -> None:
    data = [png(pictures(1)[0]), b"", b"no image", png(pictures(1)[0])[:40]]
    found = run([toy("a"), toy("b")], data, [("x",)] * 4)
    assert np.isfinite(found.scores[0][:, 0]).tolist() == [True, False, False, False]
    assert {(unit, reward) for unit, reward, _ in found.errors} == {(u, r) for u in (1, 2, 3) for r in (0, 1)}


def test_a_file_that_changed_since_it_was_listed_fails(toy) -> None:
    """The row would carry the sha256 of other bytes."""
    old, new = (png(image) for image in pictures(2))
    memory = Memory([np.full((1, 1), np.nan, np.float32)])
    Engine([toy()], ScoreSettings()).run([Held(memory, iter(tasks([old], [("x",)], 1)))], lambda place: lambda: new)
    assert "changed" in memory.errors[0, 0, 0]


class Picky:
    """Refuses wide images in preprocessing; otherwise the toy it wraps."""

    def __init__(self, inner, error: Exception) -> None:
        self._inner, self._error = inner, error
        self.preprocessing = "picky"

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        if image.width > image.height:
            raise self._error
        return self._inner.preprocess(image)


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("too\n wide"), "too wide"), (MemoryError(), "MemoryError"), (KeyError("wide"), "'wide'"),
     (TypeError("wide"), "wide")],
)  # fmt: skip
def test_an_image_that_one_preprocessing_refuses_is_scored_by_the_others(toy, error: Exception, said: str) -> None:
    images = [Image.new("RGB", (20, 10)), Image.new("RGB", (10, 20))]
    found = run([toy("a"), Picky(toy("b", encoder="b"), error)], [png(image) for image in images], [("x",)] * 2)
    assert np.isfinite(found.scores[0][:, 0]).all()
    assert np.isfinite(found.scores[1][:, 0]).tolist() == [False, True]
    assert found.errors == {(0, 1, 0): f"it cannot be preprocessed: {said}"}


class Failing:
    """Combines with ``how(images, texts, found, failures)``."""

    def __init__(self, inner, how: Callable, failures: bool = True) -> None:
        self._inner, self._how = inner, how
        if failures:
            self.failures: dict[tuple[int, int], str] = {}

    def __getattr__(self, name: str):
        if name == "failures":
            raise AttributeError(name)
        return getattr(self._inner, name)

    def combine(self, images, texts, pairing="paired"):
        found = self._inner.combine(images, texts, pairing)
        return self._how(self, found, pairing)


@pytest.mark.parametrize("pairing", ["paired", "matrix"])
def test_failures_that_a_reward_names_reach_their_pair(toy, pairing: str) -> None:
    """Every score above the median is NaN with a reason: reasons sit where the scores are missing."""

    def how(reward, found, pairing):
        bad = found > 0.5
        reward.failures = {}
        for place in torch.nonzero(bad).tolist():
            reward.failures[place[0], place[-1]] = f"too good {float(found[tuple(place)]):.5f}"
        return torch.where(bad, torch.nan, found)

    images, shared = pictures(9), ("a", "b", "c", "d")
    own = [shared] * 9 if pairing == "matrix" else [(f"p{n}",) for n in range(9)]
    plain = run([toy()], [png(image) for image in images], own).scores[0]
    found = run([Failing(toy(), how)], [png(image) for image in images], own)
    expected = {(n, 0, p): f"too good {plain[n, p]:.5f}" for n, p in np.argwhere(plain > 0.5).tolist()}
    assert expected
    assert found.errors == expected
    assert np.array_equal(np.isfinite(found.scores[0]), plain <= 0.5)


def test_not_a_number_without_a_reason(toy) -> None:
    how = lambda reward, found, pairing: torch.full_like(found, float("inf"))  # noqa: E731
    found = run([Failing(toy(), how, failures=False)], [png(pictures(1)[0])], [("x",)])
    assert found.errors == {(0, 0, 0): "the score is not a finite number"}


def test_a_reward_that_names_failures_stops_the_run_when_it_is_set_up_wrong(toy) -> None:
    def how(reward, found, pairing):
        raise InputError("no server at http://nowhere")

    with pytest.raises(InputError, match="no server"):
        run([Failing(toy(), how)], [png(image) for image in pictures(6)], [("x",)] * 6)


def test_a_prompt_of_another_world_fails_alone(draw) -> None:
    """The verifier refuses a whole batch for one prompt it cannot read; the others keep their scores."""
    images, texts = [draw(text, n) for n, text in enumerate(TEXTS)], [TEXTS[0], "a photo of Bonn", TEXTS[2]]
    found = run([rewards.load("shapes_verifier")], [png(image) for image in images], [(text,) for text in texts])
    assert np.isfinite(found.scores[0][:, 0]).tolist() == [True, False, True]
    assert list(found.errors) == [(1, 0, 0)]
    matrix = run([rewards.load("shapes_verifier")], [png(image) for image in images], [tuple(texts)] * 3)
    assert {(unit, prompt) for unit, _, prompt in matrix.errors} == {(n, 1) for n in range(3)}


class Small:
    """A device that holds three images, or three pairs, at once."""

    def __init__(self, inner) -> None:
        self._inner = inner

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def encode_images(self, pixels):
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("full")
        return self._inner.encode_images(pixels)

    def combine(self, images, texts, pairing="paired"):
        if len(images) > 2:
            raise torch.OutOfMemoryError("full")
        return self._inner.combine(images, texts, pairing)


@pytest.mark.parametrize("own", [("x",), ("x", "y")])
def test_batches_are_halved_when_memory_runs_out(toy, own: tuple[str, ...]) -> None:
    data = [png(image) for image in pictures(11)]
    settings = ScoreSettings(batch_size=8, workers=1)
    plain, small = toy(), Small(toy())
    expected = run([plain], data, [own] * 11, settings=settings)
    found = run([small], data, [own] * 11, settings=settings)
    assert np.allclose(found.scores[0], expected.scores[0], atol=1e-6)
    assert small.batches == [2] * 5 + [1], "8 became 4 became 2, and stayed there"


def test_prompts_of_duplicates_are_scored_from_one_encoding(toy) -> None:
    reward = toy()
    image = pictures(1)[0]
    found = run([reward], [png(image)], [("a", "b", "c")])
    plain = score(toy(), [image] * 3, ["a", "b", "c"])
    assert np.allclose(found.scores[0][0], plain.numpy(), atol=1e-6)
    assert sum(reward.batches) == 1


def test_order_of_images_and_threads_do_not_matter(toy) -> None:
    images = [png(image) for image in pictures(12)]
    prompts = [(f"p{n}",) for n in range(12)]
    one = run([toy()], images, prompts, settings=ScoreSettings(batch_size=5, workers=1)).scores[0][:, 0]
    two = run([toy()], images[::-1], prompts[::-1], settings=ScoreSettings(batch_size=3, workers=4)).scores[0][:, 0]
    assert np.allclose(one, two[::-1], atol=1e-6)


def test_what_waits_for_its_size_is_bounded(toy, monkeypatch) -> None:
    """64 images of 64 sizes, so that no batch is ever full: what waits stays below the limit."""
    from visfeedback.scoring import engine

    images = [Image.new("RGB", (8 + n, 8)) for n in range(64)]
    limit = 4 * images[-1].width * 8 * 3 * 4  # bytes: four of the largest
    monkeypatch.setattr(engine, "PENDING", limit)
    waiting = []
    real = Engine._work

    def watched(self, group):
        real(self, group)
        waiting.append(sum(pixels.nbytes for rows in group.pixels.values() for _, pixels in rows))

    monkeypatch.setattr(Engine, "_work", watched)
    found = run([toy(square=False)], [png(image) for image in images], [("x",)] * 64)
    assert np.isfinite(found.scores[0]).all()
    assert 0 < max(waiting) <= limit


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpu2"])
def test_a_device_that_is_not_here(name: str) -> None:
    with pytest.raises(InputError, match=f"--device {name}") as error:
        pick_device(name)
    assert "\n" not in str(error.value)
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("shared", [True, False])
def test_a_reward_that_is_asked_gets_few_pairs_at_once_and_only_missing_ones(toy, shared: bool) -> None:
    """5 images x 7 prompts (or 2 of its own each), at most 3 pairs a call; nothing is asked twice."""
    reward, images = toy(), pictures(5)
    reward.pairs_at_once = 3
    own = [tuple("abcdefg")] * 5 if shared else [(f"{n}", f"{n}x") for n in range(5)]
    data = [png(image) for image in images]
    found = run([reward], data, own)
    assert np.allclose(found.scores[0], run([toy()], data, own).scores[0], atol=1e-6)
    pairs = [shape[0] * (shape[1] if kind == "matrix" else 1) for kind, shape in reward.combined]
    assert max(pairs) == 3
    assert sum(pairs) == sum(map(len, own))
