"""Reward-weighted fine-tuning: weights in closed form, the loss they make, and scores that teach nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.support.tiny_backbone import TinyBackbone
from visfeedback.methods import _weights
from visfeedback.methods.rwr import RWR
from visfeedback.plugins import InputError
from visfeedback.types.batches import Scored
from visfeedback.types.protocols import Context

SCORES = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 11.0])
GROUP = torch.tensor([5, 5, 5, 8, 8, 8])


@pytest.fixture
def tiny() -> TinyBackbone:
    return TinyBackbone()


def weigh(method: RWR, scores=SCORES, group=GROUP, state: dict[str, Any] | None = None) -> torch.Tensor:
    return method.weigh(scores, group, ["p"] * len(scores), {} if state is None else state)


def batch(tiny: TinyBackbone, scores=SCORES, group=GROUP, weight=None, seed=0) -> Scored:
    generator = torch.Generator().manual_seed(seed)
    latents, noise = torch.randn((2, len(scores), 2, 2, 2), generator=generator, dtype=torch.float64)
    return Scored(
        latents=latents, condition=tiny.encode_text(["a red apple", "eel", "x", "ae", "b", "c"][: len(scores)]),
        scores=scores, group=group, weight=torch.ones(len(scores)) if weight is None else weight, noise=noise,
        t=tiny.process.sample_t(len(scores), generator),
    )  # fmt: skip


def context() -> Context:
    return Context(torch.Generator().manual_seed(0))


def error(tiny: TinyBackbone, scored: Scored) -> torch.Tensor:
    """(B,) each image in a call of its own."""
    rows = [scored.rows([i]) for i in range(len(scored.scores))]
    made = [tiny.predict(tiny.process.add_noise(r.latents, r.noise, r.t), r.t, r.condition) - r.noise for r in rows]
    return torch.stack([difference.square().mean() for difference in made])


def test_softmax_over_the_set_is_that_of_the_ddpo_authors():
    """w_i = N exp(tau r_i) / sum exp(tau r), tau = 1 / temperature; mean 1."""
    raised = [math.exp(5 * value) for value in SCORES.tolist()]
    expected = torch.tensor([6 * value / sum(raised) for value in raised])
    found = weigh(RWR(temperature=0.2))
    torch.testing.assert_close(found, expected)
    assert found.mean().item() == pytest.approx(1)


def test_softmax_over_a_prompt_does_not_see_the_others():
    """Each group sums to its size; adding 100 to all scores of a prompt changes nothing."""
    found = weigh(RWR(over="prompt", temperature=1.0))
    e = math.e
    torch.testing.assert_close(found[:3], torch.tensor([1, e, e * e]) * 3 / (1 + e + e * e))
    torch.testing.assert_close(found[3:].sum().item(), 3.0)
    shifted = SCORES + 100 * (GROUP == 8)
    torch.testing.assert_close(weigh(RWR(over="prompt", temperature=1.0), shifted), found)


def test_huge_scores_do_not_overflow():
    """Two of six hold all weight; they alone are learned, so each weighs 1."""
    found = weigh(RWR(temperature=1e-3), SCORES * 1e4)
    assert found.isfinite().all()
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize("over", ["set", "prompt"])
@pytest.mark.parametrize(("gap", "left"), [(80.0, 6), (120.0, 4)])
def test_weights_too_small_for_float32_change_nothing_by_leaving(over, gap, left):
    """Scores 0, 0, -gap of each prompt. e^-80 = 2e-35 is a float32, e^-120 = 8e-53 is not: that image leaves the set.
    Either way the mean of w L over those that are left is that of the four others' L: w / left = 1 / 4 each."""
    found = weigh(RWR(over=over, temperature=1.0), torch.tensor([0.0, 0.0, -gap] * 2))
    assert int((found != 0).sum()) == left and found.sum().item() == pytest.approx(left)
    torch.testing.assert_close(found / left, torch.tensor([0.25, 0.25, 0.0] * 2), rtol=1e-6, atol=1e-20)


def test_sparse_keeps_the_best_share_equally():
    """Half of 6 is 3 of the whole set; a third of each prompt is 1, ties go to the first."""
    assert weigh(RWR(weighting="sparse", keep=0.5)).tolist() == [0, 0, 0, 1, 1, 1]
    assert weigh(RWR(weighting="sparse", keep=1 / 3, over="prompt")).tolist() == [0, 0, 1, 0, 1, 0]


def test_lee_et_al_take_the_score_itself():
    """w L is averaged over the 2 that are left, and stands for a mean over all 6: .25 and 1 times 2 / 6."""
    found = weigh(RWR(weighting="reward"), torch.tensor([-0.5, 0.25, 1.0, 0, 0, 0]))
    torch.testing.assert_close(found, torch.tensor([0, 0.25, 1, 0, 0, 0]) / 3)
    assert weigh(RWR(weighting="reward"), torch.full((6,), 0.5)).tolist() == [0.5] * 6, "where none leaves, as it is"


def test_a_score_of_almost_0_is_as_good_as_0():
    """Scores 1 and five times e: the mean of w over the images that are left is 1 / 6 at e = 0 as at e = 1e-9, so the
    reward weighs the same beside beta times the real images."""
    for least in (0.0, 1e-9):
        found = weigh(RWR(weighting="reward"), torch.tensor([1.0, *[least] * 5]))
        assert found[found != 0].mean().item() == pytest.approx(1 / 6, rel=1e-6)


def test_the_effective_sample_size_is_logged():
    """Two of six images share all weight: (3 + 3)^2 / (9 + 9) = 2 images, a third of them; both hold 90%."""
    state: dict[str, Any] = {}
    weigh(RWR(temperature=1e-3), state=state)
    assert state["metrics"]["effective_images"] == pytest.approx(2)
    assert state["metrics"]["effective_share"] == pytest.approx(1 / 3)
    assert state["metrics"]["images_holding_90"] == 2
    assert _weights.effective_size(torch.ones(7)) == 7
    assert _weights.effective_size(torch.zeros(7)) == 0


def test_the_loss_is_the_weighted_mean_of_errors(tiny):
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 3.0])
    scored = batch(tiny, weight=weight)
    loss, metrics = RWR().loss(tiny, scored, context())
    torch.testing.assert_close(loss, (weight * error(tiny, scored)).mean().float(), rtol=1e-5, atol=1e-6)
    assert metrics["weight"] == pytest.approx(weight.mean().item())
    assert metrics["score"] == pytest.approx(SCORES.mean().item())


def test_weights_over_a_batch_ignore_those_of_the_set(tiny):
    """over = "batch": whatever the batch brings, the softmax of its own scores counts."""
    method = RWR(over="batch", temperature=1.0)
    assert weigh(method).tolist() == [1.0] * 6
    scored = batch(tiny, weight=torch.full((6,), 99.0))
    expected = (torch.softmax(SCORES, 0) * 6 * error(tiny, scored)).mean()
    torch.testing.assert_close(method.loss(tiny, scored, context())[0], expected.float(), rtol=1e-5, atol=1e-6)


def test_real_images_are_added_with_beta(tiny):
    """loss = own + beta * real; with beta 0 they are not even looked at."""
    scored, real = batch(tiny), batch(tiny, seed=7).rows([0, 1])
    with_real = replace(scored, real=real)
    own = RWR(beta=2.0).loss(tiny, scored, context())[0]
    loss, metrics = RWR(beta=2.0).loss(tiny, with_real, context())
    expected = error(tiny, real).mean().item()
    assert loss.item() == pytest.approx(own.item() + 2 * expected, rel=1e-5)
    assert metrics["error_real"] == pytest.approx(expected, rel=1e-5)
    tiny.calls = 0
    assert RWR(beta=0.0).loss(tiny, with_real, context())[0].item() == pytest.approx(own.item())
    assert tiny.calls == 6


def test_one_batch_of_six_equals_six_of_one(tiny):
    scored = batch(tiny, weight=torch.arange(6.0))
    RWR().loss(tiny, scored, context())[0].backward()
    together = tiny.linear.grad.clone()
    tiny.zero_grad()
    for i in range(6):
        (RWR().loss(tiny, scored.rows([i]), context())[0] / 6).backward()
    torch.testing.assert_close(tiny.linear.grad, together, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("method", "scores", "message"),
    [
        (RWR(), torch.tensor([0.0, math.nan, 1, 2, 3, 4]), r"1 of 6 images a score that is no number"),
        (RWR(), torch.zeros(6, 1), r"shape \(6, 1\) for 6 images"),
        (RWR(), torch.full((6,), 0.7), r"every image the same score \(0.7\)"),
        (RWR(over="prompt"), torch.tensor([1.0, 1, 1, 2, 2, 2]), r"every image within its prompt the same score"),
        (RWR(weighting="reward"), -torch.ones(6), r"no image has a score above 0 \(highest -1\)"),
    ],
)
def test_scores_that_teach_nothing_are_one_line(method, scores, message):
    with pytest.raises(InputError, match=message) as found:
        weigh(method, scores)
    assert "\n" not in str(found.value)


def test_a_prompt_with_one_image_has_nothing_to_compare():
    with pytest.raises(InputError, match=r"--rollout.per-prompt 2"):
        weigh(RWR(over="prompt"), SCORES, torch.arange(6))
    with pytest.raises(InputError, match="1 scored image"):
        weigh(RWR(), SCORES[:1], GROUP[:1])


def test_what_is_compared_decides_how_many_images_a_prompt_needs():
    assert RWR(over="prompt").least_group == RWR(over="prompt", weighting="sparse").least_group == 2
    assert RWR().least_group == RWR(over="batch").least_group == 1
    assert RWR(over="prompt", weighting="reward").least_group == 1, "each score is a weight by itself"


def test_the_share_of_images_that_sparse_keeps():
    """A fifth of the set; of 4 images of a prompt round(.8) = 1, a quarter. The others keep all."""
    assert RWR(weighting="sparse").kept_share(4) == 0.2
    assert RWR(weighting="sparse", over="prompt").kept_share(4) == 0.25
    assert RWR(weighting="sparse", over="batch").kept_share(4) == RWR().kept_share(4) == 1


@pytest.mark.parametrize("knobs", [{"temperature": 0}, {"keep": 0}, {"keep": 1.5}, {"beta": -1}, {"over": "all"}])
def test_impossible_knobs_are_refused(knobs):
    with pytest.raises(ValidationError):
        RWR(**knobs)
