"""ReFL: one late step with a gradient, hinge and aspects, uncertainty, and rewards it cannot learn from."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.tiny_backbone import Brightness, TinyBackbone, derivatives
from visfeedback.methods._rewarded import Objective
from visfeedback.methods._start import start
from visfeedback.methods._uncertainty import Uncertainty
from visfeedback.methods.draft import DRaFT
from visfeedback.methods.refl import ReFL
from visfeedback.plugins import InputError
from visfeedback.sampling.differentiable import descend, predicted_image
from visfeedback.types.batches import PromptBatch
from visfeedback.types.protocols import Context
from visfeedback.types.records import Prompt

STEPS = 8
LINEAR = Objective(shape="linear")


@pytest.fixture
def tiny() -> TinyBackbone:
    return TinyBackbone()


def prompts(steps: int = STEPS, guidance: float = 1.0, eta: float = 0.0) -> PromptBatch:
    return PromptBatch((Prompt.of("a red apple"), Prompt.of("eel", negative="sad")), (1, 2), steps, guidance, eta)


def context(reward: Any = None, seed: int = 0) -> Context:
    return Context(torch.Generator().manual_seed(seed), reward=reward or Brightness())


def test_one_step_has_a_gradient_and_it_is_late(tiny):
    """Window .75 to 1 of 8 steps: the step is 6 or 7, so 7 or 8 predictions, 2 rows of them with a graph."""
    seen = set()
    for seed in range(20):
        tiny.calls = tiny.graphs = 0
        _, metrics = ReFL().loss(tiny, prompts(), context(seed=seed))
        seen.add(tiny.calls)
        assert tiny.graphs == 2
        assert metrics["step_of_gradient"] <= float(tiny.process.times(STEPS)[6])
    assert seen == {14, 16}


def test_published_window_is_30_to_39_of_40():
    generator = torch.Generator().manual_seed(0)
    assert {ReFL()._step(40, generator) for _ in range(500)} == set(range(30, 40))
    assert ReFL()._step(1, generator) == 0


def test_the_gradient_equals_finite_differences_with_the_path_held(tiny):
    """x before the step is a constant: the derivative is that of reward(decode(x0(x, theta))) alone."""
    method = ReFL(window=(0.99, 1.0), objective=LINEAR)
    method.loss(tiny, prompts(), context())[0].backward()
    batch, times = prompts(), tiny.process.times(STEPS)
    begun = start(tiny, batch)
    with torch.no_grad():
        x = descend(begun.predict, tiny.process, begun.noise, times[:STEPS], begun.sources)
        t = times[STEPS - 1].expand(2)

        def loss() -> torch.Tensor:
            pixels = tiny.decode(predicted_image(begun.predict, tiny.process, x, t))
            return -Brightness().from_pixels(pixels, [p.text for p in batch.prompts]).mean()

        expected = derivatives(loss, tiny.linear, (0, 9, 27, 63))
    got = tiny.linear.grad.view(-1)[[0, 9, 27, 63]]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_hinge_stops_where_the_image_is_good_enough(tiny):
    """scale * max(0, margin - r): below the margin the gradient is that of -scale * r, above it is none."""
    loss, metrics = ReFL(objective=Objective(shape="hinge", margin=2.0, scale=1e-3)).loss(tiny, prompts(), context())
    assert loss.item() == pytest.approx(1e-3 * (2 - metrics["reward"]), rel=1e-5)
    loss, _ = ReFL(objective=Objective(shape="hinge", margin=-5.0)).loss(tiny, prompts(), context())
    assert loss.item() == 0
    loss.backward()
    assert not tiny.linear.grad.any()


def test_distance_is_alignprops(tiny):
    loss, metrics = ReFL(objective=Objective(shape="distance", margin=10.0, scale=0.01)).loss(
        tiny, prompts(), context()
    )
    assert loss.item() == pytest.approx(0.01 * (10 - metrics["reward"]), rel=1e-5)


def test_aspects_have_a_margin_each():
    """Parts .2, .9, .5 and margins .5, .5, .9: .3 + 0 + .4."""
    reward = SimpleNamespace(name="mix", parts_from_pixels=lambda pixels, prompts: pixels.flatten(1)[:, :3])
    pixels = torch.tensor([[0.2, 0.9, 0.5]]).view(1, 3, 1, 1)
    losses, scores = Objective(shape="aspects", margins=(0.5, 0.5, 0.9)).losses(reward, pixels, ["p"])
    torch.testing.assert_close(losses, torch.tensor([0.7]))
    torch.testing.assert_close(scores, torch.tensor([1.6 / 3]))
    with pytest.raises(InputError, match=r"mix has 3 parts, method\.objective\.margins has 1"):
        Objective(shape="aspects", margins=(0.5,)).losses(reward, pixels, ["p"])
    with pytest.raises(InputError, match="brightness has no parts"):
        Objective(shape="aspects", margins=(0.5,)).losses(SimpleNamespace(name="brightness"), pixels, ["p"])


def test_a_mix_gives_its_parts_with_a_gradient():
    from visfeedback.rewards import shapes_clip
    from visfeedback.rewards.mix import Mix, Part

    reward: Any = shapes_clip.load()
    twice, scaled = Part(reward="x", weight=2.0), Part(reward="y", normalise="zscore", mean=1.0, std=2.0)
    mix = Mix([(reward, twice), (reward, scaled)])
    pixels = torch.rand(2, 3, 64, 64, requires_grad=True)
    parts = mix.parts_from_pixels(pixels, ["a", "b"])
    own = reward.from_pixels(pixels, ["a", "b"])
    torch.testing.assert_close(parts, torch.stack([own, (own - 1) / 2], dim=1))
    assert parts.requires_grad
    torch.testing.assert_close(mix.from_pixels(pixels, ["a", "b"]), 2 * own + (own - 1) / 2)


def test_uncertainty_trusts_less_where_the_reward_changes_its_mind(tiny):
    """loss = L exp(-U) + penalty U with U = |r - r'| / width: a tiny width makes trust 0 and leaves penalty U."""
    plain, _ = ReFL(objective=LINEAR).loss(tiny, prompts(), context())
    calm, metrics = ReFL(objective=LINEAR, uncertainty=Uncertainty(on=True, gap=0.1, width=1e9, penalty=0.0)).loss(
        tiny, prompts(), context()
    )
    assert calm.item() == pytest.approx(plain.item(), rel=1e-6), "no doubt, all trust"
    assert 0 < metrics["uncertainty"] < 1e-6
    torn, metrics = ReFL(objective=LINEAR, uncertainty=Uncertainty(on=True, gap=0.1, width=1e-7, penalty=0.5)).loss(
        tiny, prompts(), context()
    )
    assert torn.item() == pytest.approx(0.5 * metrics["uncertainty"], rel=1e-5)
    torn.backward()
    assert tiny.linear.grad.any(), "U has a gradient of its own"


@pytest.mark.parametrize("method", [ReFL(objective=LINEAR), DRaFT(last=1), DRaFT(last=3), DRaFT(noisings=1)])
@pytest.mark.parametrize("doubt", [0.5, 2.0])
def test_trust_falls_exponentially_with_doubt(tiny, method, doubt):
    """One image whose reward changes by D: width D / U makes its doubt U, and the loss L e^-U + .3 U. At U = .5 the
    trust is .607 (e^-U^2 is .779, 1 / (1 + U)^2 .444), at U = 2 it is .135 (.018, .111)."""
    one = PromptBatch((Prompt.of("eel"),), (2,), STEPS)
    plain, _ = method.loss(tiny, one, context())

    def doubtful(**knobs: float):
        changed = method.model_copy(update={"uncertainty": Uncertainty(on=True, gap=0.1, **knobs)})
        return changed.loss(tiny, one, context())

    change = doubtful(width=1.0)[1]["uncertainty"]
    loss, metrics = doubtful(width=change / doubt, penalty=0.3)
    assert metrics["uncertainty"] == pytest.approx(doubt, rel=1e-5)
    assert loss.item() == pytest.approx(plain.item() * math.exp(-doubt) + 0.3 * doubt, rel=1e-5)


def test_drafts_last_step_is_doubted_as_refls(tiny):
    """Without randomness and with a schedule that ends at alpha 1 the finished image is what the last prediction
    implies: DRaFT-1 is ReFL at the last step, its doubt and the gradient of that included."""
    doubt, found = Uncertainty(on=True, gap=0.1, width=1e-3, penalty=0.5), []
    for method in (ReFL(window=(0.99, 1.0), objective=LINEAR, uncertainty=doubt), DRaFT(uncertainty=doubt)):
        tiny.zero_grad()
        loss, metrics = method.loss(tiny, prompts(), context())
        loss.backward()
        found.append((loss.item(), metrics["uncertainty"], tiny.linear.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6) and found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    assert found[0][1] > 0.1
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-6, atol=1e-9)


def test_the_neighbouring_time_has_the_same_image_and_noise(tiny):
    """A network that always says the true noise sees one image at any time: U = 0."""
    eps = {}
    original = tiny.predict

    def knowing(x_t, t, condition):
        # Whatever x is, the noise of the first call fixes the image it belongs to.
        made = original(x_t, t, condition)
        if "image" not in eps and made.requires_grad:
            eps["image"] = tiny.process.to_x0(made, x_t, t).detach()
        if "image" in eps:
            signal = tiny.process.add_noise(eps["image"], torch.zeros_like(x_t), t)
            sigma = tiny.process.add_noise(torch.zeros_like(x_t), torch.ones_like(x_t), t)
            return (x_t - signal) / sigma + 0 * made
        return made

    tiny.predict = knowing  # type: ignore[method-assign]
    method = ReFL(objective=LINEAR, uncertainty=Uncertainty(on=True, gap=0.2))
    _, metrics = method.loss(tiny, prompts(), context())
    assert metrics["uncertainty"] == pytest.approx(0, abs=1e-5)


def test_guidance_uses_the_prompts_negatives(tiny):
    """Two branches: 2 x 2 rows a step; the negative of one prompt changes its image alone."""
    tiny.calls = tiny.graphs = 0
    _, told = ReFL(window=(0.99, 1)).loss(tiny, prompts(guidance=3.0), context())
    assert (tiny.calls, tiny.graphs) == (4 * STEPS, 2)
    plain = PromptBatch((Prompt.of("a red apple"), Prompt.of("eel")), (1, 2), STEPS, 3.0, 0.0)
    _, other = ReFL(window=(0.99, 1)).loss(tiny, plain, context())
    assert told["reward"] != other["reward"]


class Broken(Brightness):
    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def from_pixels(self, pixels, prompts):
        return self.scores(pixels)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (SimpleNamespace(name="shapes_verifier", differentiable=False), r"shapes_verifier has no gradient, and refl"),
        (Broken(lambda p: p.mean(dim=(1, 2, 3)) * math.nan), r"score that is no number"),
        (Broken(lambda p: p.mean()), r"shape \(\) for 2 images"),
        (Broken(lambda p: p.flatten(1)), r"shape \(2, 12\) for 2 images"),
        (Broken(lambda p: torch.ones(2)), r"do not depend on the image"),
    ],
)
def test_rewards_that_cannot_be_learned_from_are_one_line(tiny, reward, message):
    with pytest.raises(InputError, match=message) as found:
        ReFL().loss(tiny, prompts(), context(reward))
    assert "\n" not in str(found.value)
    with pytest.raises(InputError, match=r"--reward.name"):
        ReFL().loss(tiny, prompts(), Context(torch.Generator()))


@pytest.mark.parametrize("window", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1), (0.5, 1.2)])
def test_an_empty_window_is_refused(window):
    with pytest.raises(ValueError, match=r"0\.75 1\.0"):
        ReFL(window=window)
