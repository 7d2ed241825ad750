"""Denoising paths: diffusers own steps and images, noise per image, exact log-probabilities, no needless graph."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler

from visfeedback.backbones.load import load
from visfeedback.diffusion.ddpm import DDPM
from visfeedback.diffusion.gaussian import log_prob
from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import (
    Walk,
    guided,
    log_probs,
    noisy_steps,
    path_log_probs,
    piece,
    reach,
    roll,
)
from visfeedback.types.batches import Rollouts

PROMPTS, SEEDS = ["a red circle", "two cats"], [3, 4]
WALK = Walk(5, 3.0, 1.0)


@pytest.fixture(scope="module")
def backbone(tiny_sd):
    backbone = load(str(tiny_sd), device="cpu")
    backbone.add_lora(rank=2)
    return backbone


@pytest.fixture
def moved(backbone):
    """A policy away from its reference; it comes back after the test."""
    before = [parameter.detach().clone() for parameter in backbone.parameters()]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    yield backbone
    with torch.no_grad():
        for parameter, value in zip(backbone.parameters(), before, strict=True):
            parameter.copy_(value)


def draw(backbone, walk=WALK, seeds=SEEDS, prompts=PROMPTS, **more):
    condition, without = backbone.encode_text(prompts), backbone.encode_text([""] * len(prompts))
    return roll(backbone, condition, without, seeds, backbone.latent_shape, walk, **more)


def rollouts(backbone, paths, walk=WALK, prompts=PROMPTS) -> Rollouts:
    rows = len(prompts)
    return Rollouts(
        latents=paths.latents, t=paths.t.expand(rows, -1), log_prob=paths.log_prob,
        condition=backbone.encode_text(prompts), scores=torch.zeros(rows), group=torch.arange(rows),
        weight=torch.ones(rows), unconditional=backbone.encode_text([""] * rows), guidance=walk.guidance, eta=walk.eta,
    )  # fmt: skip


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [5, 20])
def test_times_are_those_of_ddim(spacing, steps):
    """(i + 1) / T of diffusers' timesteps, and 0 after the last."""
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=1, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    times = DDPM.of(scheduler).times(steps)
    assert times[-1] == 0
    torch.testing.assert_close(times[:-1], (scheduler.timesteps.float() + 1) / 1000)
    with pytest.raises(InputError, match="1 to that"):
        DDPM.of(scheduler).times(1001)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_every_step_is_diffusers_own(prediction_type, eta):
    """With the same noise handed in, DDIMScheduler.step gives mean + std * noise; its log-probability is that of
    torch's own Normal, averaged over elements."""
    scheduler = DDIMScheduler(
        prediction_type=prediction_type, steps_offset=1, set_alpha_to_one=False, clip_sample=False
    )
    scheduler.set_timesteps(8)
    process, generator = DDPM.of(scheduler), torch.Generator().manual_seed(0)
    times = process.times(8)
    for k, timestep in enumerate(scheduler.timesteps.tolist()):
        x, prediction, noise = torch.randn((3, 2, 4, 8, 8), generator=generator)
        expected = scheduler.step(prediction, timestep, x, eta=eta, variance_noise=noise).prev_sample
        mean, std = process.step(prediction, x, times[k].expand(2), times[k + 1].expand(2), eta)
        found = mean + std.reshape(-1, 1, 1, 1) * noise
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        normal = torch.distributions.Normal(mean, std.reshape(-1, 1, 1, 1))
        torch.testing.assert_close(
            log_prob(found, mean, std), normal.log_prob(found).mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_path_ends_in_the_stock_pipelines_image(backbone, eta):
    """Same seeds, same generator order: first the initial noise, then every step's."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    with backbone.weights("reference"):
        call = {"num_inference_steps": 5, "guidance_scale": 3.0, "eta": eta, "output_type": "latent"}
        stock = backbone.pipe(prompt=PROMPTS, generator=generators, **call).images
        paths = draw(backbone, Walk(5, 3.0, eta))
    torch.testing.assert_close(paths.images, stock, rtol=1e-4, atol=1e-5)
    assert paths.latents.shape == (2, 6, 4, 8, 8) and paths.log_prob.shape == (2, 5)


def test_an_image_does_not_depend_on_its_neighbours(backbone):
    """Row by row, in another order, with and without memory."""
    together = draw(backbone)
    swapped = draw(backbone, seeds=SEEDS[::-1], prompts=PROMPTS[::-1])
    assert torch.equal(together.latents, swapped.latents.flip(0)), "bit for bit at one batch shape"
    alone = draw(backbone, seeds=SEEDS[:1], prompts=PROMPTS[:1], memory=False)
    assert alone.latents.shape[1] == 1
    torch.testing.assert_close(alone.images, together.images[:1], rtol=1e-4, atol=1e-4)


def test_shared_noise_is_the_start_alone(backbone):
    paths = draw(backbone, prompts=["a", "a"], starts=[9, 9])
    assert torch.equal(paths.latents[0, 0], paths.latents[1, 0]) and not torch.equal(*paths.latents[:, 1])


def test_log_probabilities_of_a_path_are_those_it_was_drawn_with(moved):
    """ratio = 1 before any update: evaluated step by step, or all steps in one call, under the weights that drew it."""
    paths = draw(moved)
    whole = rollouts(moved, paths)
    steps = noisy_steps(moved.process, WALK)
    assert torch.equal(path_log_probs(moved, whole, steps), paths.log_prob), "bit for bit at one batch shape"
    torch.testing.assert_close(log_probs(moved, whole).detach(), paths.log_prob, rtol=1e-4, atol=1e-4)
    with moved.weights("reference"):
        assert (path_log_probs(moved, whole, steps) - paths.log_prob).abs().min() > 1e-6, "other weights, others"


def test_half_precision_keeps_exact_log_probabilities(moved):
    """Every step is rounded to fp16 first, so the stored path has the log-probabilities that were recorded, in fp32."""
    walk = Walk(5, 3.0, 1.0, half=True)
    paths = draw(moved, walk)
    assert paths.latents.dtype == torch.float16 and paths.log_prob.dtype == torch.float32
    found = path_log_probs(moved, rollouts(moved, paths, walk), noisy_steps(moved.process, walk))
    torch.testing.assert_close(found, paths.log_prob, rtol=0, atol=1e-5)


def test_a_network_in_bf16_gives_fp32_log_probabilities(tiny_sd):
    backbone = load(str(tiny_sd), device="cpu", dtype="bf16")
    backbone.add_lora(rank=2)
    paths = draw(backbone)
    assert paths.latents.dtype == paths.log_prob.dtype == torch.float32 and paths.log_prob.isfinite().all()
    found = path_log_probs(backbone, rollouts(backbone, paths), noisy_steps(backbone.process, WALK))
    assert torch.equal(found, paths.log_prob)


def test_the_unconditional_branch_has_no_graph(moved, monkeypatch):
    """Two network calls, one with a graph; the gradient is g times that of the conditional branch alone."""
    graphs, predict = [], moved.predict
    monkeypatch.setattr(moved, "predict", lambda *call: graphs.append(torch.is_grad_enabled()) or predict(*call))
    x, t = torch.randn((2, 4, 8, 8)), torch.full((2,), 0.5)
    condition, without = moved.encode_text(PROMPTS), moved.encode_text(["", ""])
    whole = torch.autograd.grad(guided(moved, x, t, condition, without, 3.0).sum(), list(moved.parameters()))
    assert graphs == [False, True]
    alone = torch.autograd.grad(predict(x, t, condition).sum(), list(moved.parameters()))
    for a, b in zip(whole, alone, strict=True):
        # Sums of many terms: what rounding leaves on a small element goes with the tensor's largest one.
        torch.testing.assert_close(a, 3 * b, rtol=1e-4, atol=1e-6 * max(1.0, float(a.abs().max())))
    graphs.clear()
    guided(moved, x, t, condition, without, 1.0)
    assert graphs == [True], "guidance 1 is one call"


def test_steps_without_noise_have_no_log_probability(backbone):
    """eta 0: none has; a schedule that ends at alpha 1: the last has none, and counts as 0."""
    assert noisy_steps(backbone.process, Walk(5, eta=0.0)) == []
    assert draw(backbone, Walk(5, 3.0, 0.0)).log_prob.abs().max() == 0
    assert noisy_steps(backbone.process, WALK) == [0, 1, 2, 3, 4]
    to_one = DDPM.of(DDIMScheduler(steps_offset=1, set_alpha_to_one=True))
    assert noisy_steps(to_one, WALK) == [0, 1, 2, 3]


def test_random_steps_may_be_some_only(moved):
    """Five steps begin at .8 and fall by .2: between .3 and .7 two are random and the others DDIM's deterministic ones,
    so two paths that share their start part at the first random step and only there; ratio = 1 as ever."""
    walk = Walk(5, 3.0, 1.0, (0.3, 0.7))
    assert [round(t, 1) for t in moved.process.times(5).tolist()] == [0.8, 0.6, 0.4, 0.2, 0.0, 0.0]
    assert noisy_steps(moved.process, walk) == [1, 2]
    paths = draw(moved, walk, prompts=["a", "a"], starts=[9, 9])
    same = [torch.equal(*paths.latents[:, k]) for k in range(6)]
    assert same == [True, True, False, False, False, False]
    assert (paths.log_prob != 0).tolist() == [[False, True, True, False, False]] * 2
    whole = rollouts(moved, paths, walk, prompts=["a", "a"])
    assert torch.equal(path_log_probs(moved, whole, [1, 2]), paths.log_prob)
    k = 3  # a step outside: no noise is drawn, the next latents are DDIM's own
    t = paths.t[k].expand(2), paths.t[k + 1].expand(2)
    with torch.no_grad():
        prediction = guided(moved, paths.latents[:, k], t[0], whole.condition, whole.unconditional, 3.0)
    torch.testing.assert_close(moved.process.step(prediction, paths.latents[:, k], *t, 0.0)[0], paths.latents[:, k + 1])


def test_reach_is_the_derivative_of_a_step_over_its_spread(moved):
    """reach = |d mean / d prediction| / std, here by autograd; the log-probability's gradient to the prediction is the
    step's noise times it, over the number of elements: log p = -(x - mean)^2 / (2 std^2) averaged."""
    whole = rollouts(moved, draw(moved))
    found = reach(moved.process, whole)
    for k in range(5):
        t = whole.t[:, k], whole.t[:, k + 1]
        prediction = torch.zeros_like(whole.latents[:, k]).requires_grad_()
        mean, std = moved.process.step(prediction, whole.latents[:, k], *t, 1.0)
        slope = torch.autograd.grad(mean.sum(), prediction)[0][:, 0, 0, 0].abs()
        torch.testing.assert_close(found[:, k], slope / std, rtol=1e-4, atol=1e-6)
    assert found.min() > 0 and found[0].max() > 5 * found[0].min(), "steps are not alike, or nothing was tested"


def test_a_piece_is_one_step_of_every_path(backbone):
    whole = rollouts(backbone, draw(backbone))
    part = piece(whole, 2)
    assert part.latents.shape == (2, 2, 4, 8, 8) and torch.equal(part.latents, whole.latents[:, 2:4])
    assert torch.equal(part.t, whole.t[:, 2:4]) and torch.equal(part.log_prob, whole.log_prob[:, 2:3])
    assert math.isclose(part.guidance, 3.0)
