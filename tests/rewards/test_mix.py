"""Mixing rewards: the arithmetic against closed forms, and the mix as a reward that keeps every law of one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import _packed, mix
from visfeedback.rewards.mix import Mix, Part, Running
from visfeedback.types.records import Origin

PROMPTS = ["a red circle", "two blue circles", "a green square"]


def _images(sizes: list[tuple[int, int]], seed: int = 0) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


def _unit(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1).float() / 255 for i in images])


@pytest.fixture(scope="module")
def clip(tiny_clip):
    return rewards.load(f"shapes_clip@{tiny_clip}")


@pytest.fixture(scope="module")
def verifier():
    return rewards.load("shapes_verifier")


@pytest.fixture(scope="module")
def both(clip, verifier):
    """One part reads pixels of any size, the other features of one size; they share nothing."""
    return Mix([(clip, Part(reward="shapes_clip", weight=2)), (verifier, Part(reward="shapes_verifier", weight=-0.5))])


# the arithmetic


def test_normalisations_by_hand():
    """Scores 1, 2, 6: mean 3, squared deviations 4 + 1 + 9 = 14, std sqrt(14 / 3); bounds 1 and 6."""
    scores = torch.tensor([[1.0], [2.0], [6.0]])
    spread = Running.of(scores).spread
    std = math.sqrt(14 / 3)
    expected = {"none": [1, 2, 6], "zscore": [-2 / std, -1 / std, 3 / std], "minmax": [0, 0.2, 1], "rank": [0, 0.5, 1]}
    for how, values in expected.items():
        found = mix.normalise(scores, [how], spread, torch.zeros(3, dtype=torch.int64))
        assert found[:, 0].tolist() == pytest.approx(values, abs=1e-6)


def test_each_reward_has_its_own_normalisation():
    scores = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    found = mix.normalise(scores, ["none", "zscore"], Running.of(scores).spread)
    assert found.tolist() == [[1.0, -1.0], [3.0, 1.0]]


def test_running_statistics_equal_those_of_all_at_once():
    """Whatever the pieces; large means do not swamp the deviations."""
    scores = 1000 + torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, pieces = Running.of(scores), Running.of(scores[:7])
    for part in (scores[7:8], scores[8:40], scores[40:]):
        pieces = pieces.updated(part)
    assert pieces.count == whole.count == 50
    assert torch.allclose(pieces.spread.mean, scores.mean(0).float())
    assert torch.allclose(pieces.squares / 50, scores.var(0, correction=0))
    for name in ("mean", "std", "low", "high"):
        assert torch.allclose(getattr(pieces.spread, name), getattr(whole.spread, name), rtol=1e-6)


def test_group_statistics_equal_those_of_each_group():
    """Groups of 1, 2 and 4 rows in mixed order, with ids that are neither sorted nor dense."""
    scores = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))
    groups = torch.tensor([9, -3, 9, 9, 40, -3, 9])
    spread = mix.group_spread(scores, groups)
    for row in range(7):
        own = scores[groups == groups[row]]
        assert torch.allclose(spread.mean[row], own.mean(0), atol=1e-6)
        assert torch.allclose(spread.std[row], own.std(0, correction=0), atol=1e-6)
        assert torch.equal(spread.low[row], own.amin(0))
        assert torch.equal(spread.high[row], own.amax(0))


def test_a_group_of_equal_scores_becomes_zero_not_noise():
    """21.7 has no exact float: its mean over 3 must still give deviation 0, and the z-score 0."""
    scores, groups = torch.full((3, 1), 21.7), torch.zeros(3, dtype=torch.int64)
    spread = mix.group_spread(scores, groups)
    assert spread.std.tolist() == [[0.0]] * 3
    for how in ("zscore", "minmax"):
        assert mix.normalise(scores, [how], spread).tolist() == [[0.0]] * 3


def test_rank_within_the_group():
    """Ties share: of 1, 1, 5 the two lowest beat half of one of two others, 1/4; a row alone gets 1/2."""
    scores = torch.tensor([[1.0], [7.0], [1.0], [5.0]])
    assert mix.rank(scores, torch.tensor([0, 1, 0, 0]))[:, 0].tolist() == [0.25, 0.5, 0.25, 1.0]


def test_a_missing_spread_or_group_is_an_error():
    with pytest.raises(ValueError, match="groups"):
        mix.normalise(torch.zeros(2, 1), ["rank"])
    with pytest.raises(ValueError, match="zscore needs a spread"):
        mix.normalise(torch.zeros(2, 1), ["zscore"])


def test_combine_and_uncertainty_by_hand():
    """Weights .75 and .25 of 4 and 0: mean 3, variance .75 * 1 + .25 * 9 = 3; pessimism 2 takes 2 sqrt(3) off."""
    scores, weights = torch.tensor([[4.0, 0.0]]), torch.tensor([0.75, 0.25])
    assert mix.combine(scores, weights).item() == pytest.approx(3)
    assert mix.uncertainty(scores, weights).item() == pytest.approx(math.sqrt(3))
    assert mix.combine(scores, weights, 2.0).item() == pytest.approx(3 - 2 * math.sqrt(3))


def test_weights_of_any_size_and_sign():
    """Doubling the weights doubles the mix and leaves the disagreement; a turned reward with a turned weight agrees."""
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    weights = torch.tensor([0.5, 0.2, 0.3])
    assert torch.allclose(mix.combine(scores, 2 * weights, 1.5), 2 * mix.combine(scores, weights, 1.5))
    assert torch.allclose(mix.uncertainty(scores, 2 * weights), mix.uncertainty(scores, weights))
    turn = torch.tensor([1.0, -1.0, 1.0])
    assert torch.allclose(mix.combine(scores * turn, weights * turn, 1.5), mix.combine(scores, weights, 1.5))


def test_agreement_is_no_uncertainty_and_its_gradient_is_finite():
    scores = torch.full((2, 3), 0.3, requires_grad=True)
    weights = torch.tensor([0.5, 0.25, 0.25])
    assert mix.uncertainty(scores, weights).tolist() == [0.0, 0.0]
    mix.combine(scores, weights, 1.0).sum().backward()
    assert torch.allclose(scores.grad, weights.expand(2, 3))


def test_a_matrix_of_scores_is_treated_like_its_rows():
    scores = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(3))
    weights, spread = torch.tensor([1.0, 2.0, -1.0]), Running.of(scores.flatten(0, 1)).spread
    kinds = ["zscore", "none", "minmax"]
    whole = mix.combine(mix.normalise(scores, kinds, spread), weights, 0.5)
    rows = mix.combine(mix.normalise(scores.flatten(0, 1), kinds, spread), weights, 0.5)
    assert torch.allclose(whole, rows.view(2, 5))


# packing


def test_packing_keeps_types_shapes_and_values():
    tensors = [
        torch.randn(3, 2, 4, dtype=torch.float32),
        torch.randn(3, 5).to(torch.bfloat16),
        torch.randint(0, 256, (3, 3, 2, 2), dtype=torch.uint8),
        torch.tensor([2**24, 7, 0]),
    ]
    ((rows, found),) = _packed.unpack(_packed.pack(tensors))
    assert rows == [0, 1, 2]
    for before, after in zip(tensors, found, strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


def test_packed_rows_of_different_shapes_may_be_stacked():
    """2 x 3 and 3 x 2 take the same room; 4 x 4 takes more, so the others are filled up."""
    first, second, third = torch.rand(1, 2, 3), torch.rand(2, 3, 2), torch.rand(1, 4, 4)
    packed = _packed.stack([_packed.pack([tensor]) for tensor in (first, second, third)])
    found = {tuple(rows): tensors[0] for rows, tensors in _packed.unpack(packed)}
    assert {rows: tuple(t.shape) for rows, t in found.items()} == {(0,): (1, 2, 3), (1, 2): (2, 3, 2), (3,): (1, 4, 4)}
    assert torch.equal(found[1, 2], second)


# the reward


def test_a_mix_is_the_weighted_sum_of_its_parts(both, clip, verifier):
    images = _images([(64, 64)] * 3)
    for pairing in ("paired", "matrix"):
        parts = [rewards.score(reward, images, PROMPTS, pairing) for reward in (clip, verifier)]
        assert torch.allclose(rewards.score(both, images, PROMPTS, pairing), 2 * parts[0] - 0.5 * parts[1], atol=1e-5)


def test_pictures_of_many_sizes(both, clip, verifier):
    """32 x 64 and 64 x 32 pack to the same length; a batch of both gives what each gives alone."""
    images = _images([(32, 64), (64, 32), (64, 64), (32, 64)])
    prompts = [*PROMPTS, PROMPTS[0]]
    alone = torch.cat([rewards.score(both, [i], [p]) for i, p in zip(images, prompts, strict=True)])
    assert torch.allclose(rewards.score(both, images, prompts), alone, atol=1e-5)
    packed = torch.stack([both.preprocess(image) for image in images[:2]])
    features = both.encode_images(packed)
    assert torch.allclose(both.combine(features, both.encode_texts(prompts[:2])), alone[:2], atol=1e-5)
    order = [3, 1, 0, 2]
    turned = rewards.score(both, [images[i] for i in order], [prompts[i] for i in order])
    assert torch.allclose(turned, alone[order], atol=1e-5)


def test_equal_towers_run_once(clip):
    """Two parts on one tower: one preprocessing, one encoding."""
    calls: list[int] = []

    class Counting:
        def __getattr__(self, name):
            return getattr(clip, name)

        def encode_images(self, pixels):
            calls.append(len(pixels))
            return clip.encode_images(pixels)

    twice = Mix([(Counting(), Part(reward="a")), (Counting(), Part(reward="b", weight=2))])
    images = _images([(32, 32)] * 2)
    assert torch.allclose(rewards.score(twice, images, PROMPTS[:2]), 3 * rewards.score(clip, images, PROMPTS[:2]))
    assert calls == [2]


def test_what_a_mix_says_of_itself(both, clip, verifier, tiny_clip):
    """Bounds: 2 [-1, 1] - 0.5 [0, 1] = [-2.5, 2]. With pessimism 1 the votes span [-1, 1]: 2.5 * 2 / 2 less."""
    assert both.range == (-2.5, 2.0)
    careful = Mix([(r, p) for r, p in zip(both.rewards, both.recipe.parts, strict=True)], pessimism=1)
    assert careful.range == (-5.0, 2.0)
    assert not both.differentiable
    assert both.reads_prompt
    assert both.encoder == careful.encoder
    assert both.origin.checkpoint_sha256 != careful.origin.checkpoint_sha256
    assert Mix([(clip, Part(reward="shapes_clip"))]).encoder != both.encoder
    half = Mix(
        [(rewards.load(f"clipscore@{tiny_clip}", dtype="bf16"), both.recipe.parts[0]), (verifier, both.recipe.parts[1])]
    )
    assert (both.origin.dtype, half.origin.dtype) == ("fp32", "bf16"), "a program beside it does not make it exact"
    unbounded = Mix([(clip, Part(reward="c", normalise="zscore", mean=0.5, std=0.25))])
    assert unbounded.range == (-6.0, 2.0)


def test_a_mix_of_differentiable_rewards_has_a_gradient(clip):
    parts = [(clip, Part(reward="c", weight=2, normalise="zscore", mean=0.1, std=0.5)), (clip, Part(reward="d"))]
    whole = Mix(parts, pessimism=0.5)
    assert whole.differentiable
    images = _images([(32, 32)] * 2)
    pixels = _unit(images).requires_grad_(True)
    scores = whole.from_pixels(pixels, PROMPTS[:2])
    assert torch.allclose(scores, rewards.score(whole, images, PROMPTS[:2]), atol=1e-5)
    scores.sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_fitted_on_the_scores_of_several_prompts(both):
    """After z-scores fitted on these very pictures each part has mean 0 and deviation 1 over them."""
    images = _images([(64, 64)] * 4)
    features = both.encode_images(torch.stack([both.preprocess(i) for i in images]))
    texts = both.encode_texts(PROMPTS)
    seen = Running.of(both.scores(features, texts, "matrix").flatten(0, 1))
    fitted = both.fitted(seen)
    found = fitted.normalised(fitted.scores(features, texts, "matrix")).flatten(0, 1)
    assert torch.allclose(found.mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(found.std(0, correction=0), torch.ones(2), atol=1e-4)
    assert [part.weight for part in fitted.recipe.parts] == [2, -0.5]
    doubt = fitted.uncertainty(features, texts, "matrix")
    assert torch.allclose(doubt, mix.uncertainty(found, torch.tensor([2, -0.5])).view(4, 3), atol=1e-5)
    with pytest.raises(InputError, match=r"shapes_clip gave 0\.3 to every picture"):
        both.fitted(Running.of(torch.tensor([[0.3, 0.1], [0.3, 0.5]])))


def _write(folder: Path, text: str) -> Path:
    file = folder / "mix.toml"
    file.write_text(text)
    return file


def test_from_a_file_with_paths_beside_it(tiny_clip, tmp_path, both):
    (tmp_path / "clip").symlink_to(tiny_clip)
    file = _write(
        tmp_path,
        '[[parts]]\nreward = "shapes_clip@clip"\nweight = 2\n[[parts]]\nreward = "shapes_verifier"\nweight = -0.5\n',
    )
    loaded = rewards.load(f"mix@{file}")
    images = _images([(64, 64)] * 2)
    assert torch.allclose(
        rewards.score(loaded, images, PROMPTS[:2]), rewards.score(both, images, PROMPTS[:2]), atol=1e-6
    )
    assert loaded.origin.model == str(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[parts]", "not a TOML file"),
        ("pessimism = 1", "parts"),
        ("parts = []", "parts"),
        ('[[parts]]\nreward = "shapes_clip"\nweigth = 1', "parts.0.weigth; did you mean 'weight'"),
        ('pesimism = 1\n[[parts]]\nreward = "shapes_clip"', "did you mean 'pessimism'"),
        ('[[parts]]\nreward = "shapes_clip"\nnormalise = "zscore"\nmean = 1', "add std"),
        ('[[parts]]\nreward = "shapes_clip"\nnormalise = "minmax"\nlow = 1\nhigh = 1', "not below"),
        ('[[parts]]\nreward = "shapes_clip"\nnormalise = "rank"', "parts.0.normalise"),
        ('[[parts]]\nreward = "shapes_clip"\nweight = nan', "parts.0.weight"),
        ('[[parts]]\nreward = "shapes_clip"\nweight = 0', "all weights are 0"),
        ('pessimism = -1\n[[parts]]\nreward = "shapes_clip"', "pessimism"),
        ('[[parts]]\nreward = "shapes_klip"', "did you mean 'shapes_clip'"),
        ('[[parts]]\nreward = "mix@other.toml"', "a mix cannot hold another mix"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, words):
    with pytest.raises(InputError) as error:
        rewards.load(f"mix@{_write(tmp_path, text)}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mix_needs_a_file(tmp_path):
    for reference, words in (
        ("mix", "mix@FILE.toml"),
        ("mix:fast", "mix has no variant 'fast'"),
        ("mix:agreement", "mix@FILE.toml"),
        (f"mix@{tmp_path}/no.toml", "no file"),
    ):
        with pytest.raises(InputError, match=words):
            rewards.load(reference)
    with pytest.raises(InputError, match="not a TOML file"):
        rewards.load(f"mix@{tmp_path}")


# what cannot be scored


class Wordless:
    """A part without a score for prompts that begin with "two"; ``down``: its server is not there."""

    name, differentiable, reads_prompt, range = "wordless", False, True, (0.0, 1.0)
    preprocessing, encoder, origin = "rgb-uint8", "pixels", Origin(model="endpoint", dtype="")
    pairs_at_once = 5

    def __init__(self, down: bool = False) -> None:
        self.failures = {}
        self._down = down

    def preprocess(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def encode_images(self, pixels):
        return pixels

    def encode_texts(self, prompts):
        return list(prompts)

    def combine(self, images, texts, pairing="paired"):
        if self._down:
            raise InputError("no server")
        columns = [j for j, text in enumerate(texts) if text.startswith("two")]
        rows = (
            [(j, j) for j in columns] if pairing == "paired" else [(i, j) for i in range(len(images)) for j in columns]
        )
        self.failures = dict.fromkeys(rows, "no words")
        found = torch.full((len(images), len(texts)), 0.5)
        found[:, columns] = torch.nan
        return found.diagonal() if pairing == "paired" else found


@pytest.mark.parametrize("pairing", ["paired", "matrix"])
def test_what_a_part_cannot_score_says_why(clip, verifier, pairing):
    """Pictures of two sizes: reasons sit at the pairs without a score. The verifier knows no elephants."""
    whole = Mix([(clip, Part(reward="c")), (Wordless(), Part(reward="w")), (verifier, Part(reward="v"))])
    images = _images([(32, 64), (64, 64), (32, 64)])
    prompts = ["two circles", "a red circle", "an elephant"]
    features = _packed.stack([whole.encode_images(whole.preprocess(image)[None]) for image in images])
    scores = whole.combine(features, whole.encode_texts(prompts), pairing)
    assert scores.isnan().nonzero()[:, -1].tolist() == ([0, 2] if pairing == "paired" else [0, 2] * 3)
    assert set(whole.failures) == {(r, c) for r in range(3) for c in (0, 2) if pairing == "matrix" or r == c}
    for (_, column), why in whole.failures.items():
        assert why.startswith("wordless: no words" if column == 0 else "shapes_verifier: the shapes world cannot read")
    assert whole.pairs_at_once == 5


def test_a_part_that_cannot_work_at_all_stops_the_mix(clip):
    """Else each of a thousand pairs would wait for the same server in vain."""
    whole = Mix([(clip, Part(reward="c")), (Wordless(down=True), Part(reward="w"))])
    with pytest.raises(InputError, match="no server"):
        rewards.score(whole, _images([(32, 32)]), PROMPTS[:1])


def test_agreement_is_minus_the_disagreement(tiny_clip, tmp_path):
    """By hand: weights 2 and -0.5, so that the second vote is turned. Votes of a clip in [-1, 1] and of -[0, 1] span
    [-1, 1]: at most 1 apart from their middle."""
    (tmp_path / "clip").symlink_to(tiny_clip)
    text = '[[parts]]\nreward = "shapes_clip@clip"\nweight = 2\n[[parts]]\nreward = "shapes_verifier"\nweight = -0.5\n'
    file = _write(tmp_path, text)
    whole, agreement = rewards.load(f"mix:sum@{file}"), rewards.load(f"mix:agreement@{file}")
    images = _images([(64, 64)] * 3)
    parts = [rewards.score(reward, images, PROMPTS) for reward in whole.rewards]
    expected = -mix.uncertainty(torch.stack(parts, -1), torch.tensor([2, -0.5]))
    assert torch.allclose(rewards.score(agreement, images, PROMPTS), expected, atol=1e-6)
    assert agreement.range == (-1.0, 0.0)
    assert (agreement.name, agreement.encoder, agreement.preprocessing) == (
        "mix:agreement", whole.encoder, whole.preprocessing,
    )  # fmt: skip


def test_agreement_has_a_gradient_where_the_parts_have(clip):
    agreement = mix.Agreement(Mix([(clip, Part(reward="c", weight=2)), (clip, Part(reward="d", normalise="zscore",
                                                                                 mean=0.1, std=0.5))]))  # fmt: skip
    images = _images([(32, 32)] * 2)
    pixels = _unit(images).requires_grad_(True)
    scores = agreement.from_pixels(pixels, PROMPTS[:2])
    assert torch.allclose(scores, rewards.score(agreement, images, PROMPTS[:2]), atol=1e-5)
    scores.sum().backward()
    assert pixels.grad.abs().sum() > 0
