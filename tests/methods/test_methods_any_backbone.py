"""Methods know a backbone and its process by their protocols: here a flow on a plain module, without any diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.methods.test_methods_refl import context, prompts
from tests.support.tiny_backbone import Brightness, TinyBackbone, derivatives
from tests.support.tiny_rollouts import moved
from visfeedback.methods._rewarded import Objective
from visfeedback.methods._start import start
from visfeedback.methods.d3po import D3PO
from visfeedback.methods.ddpo import DDPO
from visfeedback.methods.draft import DRaFT
from visfeedback.methods.refl import ReFL, Uncertainty
from visfeedback.methods.rwr import RWR
from visfeedback.sampling.differentiable import descend
from visfeedback.sampling.rollout import Paths, Walk, log_probs, noisy_steps, piece, roll
from visfeedback.types.batches import Rollouts, Scored
from visfeedback.types.protocols import Backbone

WALK, SEEDS, PLACES = Walk(4, 3.0, 0.5), (5, 6, 7, 8), (0, 9, 27, 63)


class Flow:
    """x_t = (1 - t) x0 + t eps, predicting v = eps - x0; steps keep the coefficients (Flow-CPS, arXiv 2509.05952):
    x' = (1 - t') x0 + t' cos(eta pi / 2) eps + t' sin(eta pi / 2) fresh noise."""

    sampler = "FlowMatchEulerDiscreteScheduler"

    def sample_t(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, generator=generator)

    def times(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return (1 - column(t, x0)) * x0 + column(t, x0) * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - x0

    def to_x0(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t - column(t, x_t) * pred

    def step(self, pred: Tensor, x_t: Tensor, t: Tensor, t_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        x0, eps, later = self.to_x0(pred, x_t, t), x_t + (1 - column(t, x_t)) * pred, column(t_next, x_t)
        angle = eta * math.pi / 2
        return (1 - later) * x0 + later * math.cos(angle) * eps, t_next * math.sin(angle)


def column(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))


@pytest.fixture
def flow() -> TinyBackbone:
    return TinyBackbone(process=Flow())


def drawn(backbone: Backbone) -> tuple[Paths, Rollouts]:
    """Two groups of two paths, and what a loss learns from: their second step."""
    told, free = backbone.encode_text(["eel", "eel", "an ape", "an ape"]), backbone.encode_text([""] * 4)
    paths = roll(backbone, told, free, SEEDS, backbone.latent_shape, WALK)
    whole = Rollouts(
        latents=paths.latents, t=paths.t.expand(4, -1), log_prob=paths.log_prob, condition=told,
        scores=torch.tensor([1.0, 0.0, 0.0, 1.0]), group=torch.tensor([0, 0, 1, 1]),
        weight=torch.tensor([1.0, -0.5, -2.0, 0.25]), unconditional=free, guidance=WALK.guidance, eta=WALK.eta,
        reference_log_prob=paths.log_prob,
    )  # fmt: skip
    return paths, piece(whole, 1)


def test_it_is_no_diffusers_model(flow):
    """Else the tests below would say nothing."""
    assert not any(hasattr(part, name) for part in (flow, flow.process) for name in ("pipe", "alphas_cumprod"))


def test_paths_are_drawn_and_their_steps_known_again(flow):
    """The last step ends at t = 0 where t' sin(.) is 0: three of four steps are random. Weights are those that drew."""
    assert noisy_steps(flow.process, WALK) == [0, 1, 2]
    paths, batch = drawn(flow)
    assert paths.latents.shape == (4, 5, *flow.latent_shape)
    torch.testing.assert_close(log_probs(flow, batch), batch.log_prob, rtol=0, atol=1e-6)
    still = roll(flow, batch.condition, None, SEEDS, flow.latent_shape, Walk(4, 1.0, eta=0.0)).latents
    with torch.no_grad():  # without noise it is the Euler step x + (t' - t) v; of four steps t' - t is -1/4
        moved_by = flow.predict(still[:, 0], torch.ones(4), batch.condition)
    torch.testing.assert_close(still[:, 1], (still[:, 0] - moved_by / 4).float())


@pytest.mark.parametrize(("method", "expected"), [(DDPO(), 1.25 / 4), (DDPO(even_steps=True), 1.25 / 4),
                                                  (DDPO(kl=0.1), 1.25 / 4), (D3PO(), math.log(2))])  # fmt: skip
def test_path_methods_begin_where_they_should(flow, method, expected):
    """Before the first update ratios are 1, so DDPO's loss is minus the mean weight, 1.25 / 4, and its penalty 0; with
    policy = reference D3PO's is ln 2. Both have a gradient; away from there the losses differ."""
    _, batch = drawn(flow)
    loss, _ = method.loss(flow, batch, context())
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    loss.backward()
    assert flow.linear.grad.abs().max() > 0 and flow.told.grad.abs().max() > 0
    with moved(flow):
        assert method.loss(flow, batch, context())[0].item() != pytest.approx(expected, abs=1e-7)


def test_weighted_likelihood_is_that_of_the_flow(flow):
    """mean over images of weight times the mean square of prediction - (eps - x0), at x_t = (1 - t) x0 + t eps."""
    generator = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(2, *flow.latent_shape, generator=generator) for _ in range(2))
    t, weight, told = torch.tensor([0.25, 0.5]), torch.tensor([2.0, 0.5]), flow.encode_text(["a", "bee"])
    batch = Scored(x0, told, torch.zeros(2), torch.arange(2), weight, eps, t)
    with torch.no_grad():
        x_t = torch.stack([0.75 * x0[0] + 0.25 * eps[0], 0.5 * x0[1] + 0.5 * eps[1]])
        each = (flow.predict(x_t, t, told) - (eps - x0)).square().mean(dim=(1, 2, 3))
    loss, _ = RWR().loss(flow, batch, context())
    assert loss.item() == pytest.approx((2 * each[0] + 0.5 * each[1]).item() / 2, rel=1e-6)
    loss.backward()
    assert flow.linear.grad.abs().max() > 0


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("last", [1, 99])
def test_reward_gradients_through_the_flow_equal_finite_differences(flow, eta, last):
    """With a graph through both branches and all steps nothing is approximate. K = 1 holds x before the last step: the
    difference quotient of the whole path is then another number."""
    method, batch = DRaFT(last=last, guide_whole=True), prompts(4, 3.0, eta)
    method.loss(flow, batch, context())[0].backward()
    got = flow.linear.grad.view(-1)[list(PLACES)]
    with torch.no_grad():
        expected = torch.tensor(derivatives(lambda: method.loss(flow, batch, context())[0], flow.linear, PLACES))
    near = torch.allclose(got, expected.to(got), rtol=1e-6, atol=1e-9)
    assert near is (last == 99)


def test_reward_feedback_learns_from_the_image_that_the_flow_implies(flow):
    """At the first of the steps x is the noise itself, so the loss is that of x - t v, and the quotient is exact."""
    method, batch = ReFL(window=(0.0, 0.01), objective=Objective()), prompts(4)
    loss, metrics = method.loss(flow, batch, context())
    loss.backward()
    assert metrics["step_of_gradient"] == 1.0, "t of the first step"
    with torch.no_grad():
        expected = derivatives(lambda: method.loss(flow, batch, context())[0], flow.linear, PLACES)
    got = flow.linear.grad.view(-1)[list(PLACES)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_a_neighbouring_time_of_a_flow_is_looked_at(flow):
    """Step 2 of 4 is t = .5: the image is x - .5 v and the noise under it x + .5 v, which together make the x of
    t = .6 as .4 image + .6 noise; the doubt is the difference of the two scores over the width."""
    batch = prompts(4)
    method = ReFL(window=(0.5, 0.51), objective=Objective(), uncertainty=Uncertainty(on=True, gap=0.1, width=0.01))
    _, metrics = method.loss(flow, batch, context())
    with torch.no_grad():
        begun, texts = start(flow, batch), [prompt.text for prompt in batch.prompts]
        x = descend(begun.predict, flow.process, begun.noise, begun.times[:3], begun.sources)
        v = begun.predict(x, torch.full((2,), 0.5))
        beside, later = 0.4 * (x - 0.5 * v) + 0.6 * (x + 0.5 * v), torch.full((2,), 0.6)
        pictures = (x - 0.5 * v, beside - 0.6 * begun.predict(beside, later))
        first, second = (Brightness().from_pixels(flow.decode(picture), texts) for picture in pictures)
    assert metrics["uncertainty"] == pytest.approx((first - second).abs().mean().item() / 0.01, rel=1e-4) != 0
