"""The process against the real diffusers schedulers, and its laws."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler

from visfeedback.diffusion.ddpm import DDPM
from visfeedback.plugins import InputError

KINDS = ("epsilon", "v_prediction")
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tensors(*shape: int, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def ddim(kind: str = "epsilon", **more: object) -> DDIMScheduler:
    return DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type=kind, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_target_equal_the_training_scheduler(kind: str) -> None:
    """DDPMScheduler.add_noise and get_velocity take the index i; we take t = (i + 1) / T."""
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type=kind)
    process, (x0, noise) = DDPM.of(scheduler), tensors(5, 4, 3, 3)
    index = torch.tensor([0, 1, 500, 998, 999])
    t = process.time(index)
    assert torch.equal(process.add_noise(x0, noise, t), scheduler.add_noise(x0, noise, index))
    expected = noise if kind == "epsilon" else scheduler.get_velocity(x0, noise, index)
    assert torch.equal(process.target(x0, noise, t), expected)


def test_no_noise_at_time_zero() -> None:
    x0, noise = tensors(2, 4, 3, 3)
    assert torch.equal(DDPM.of(ddim()).add_noise(x0, noise, torch.zeros(2)), x0)


@pytest.mark.parametrize("kind", KINDS)
def test_to_x0_inverts_target(kind: str) -> None:
    """What a perfect prediction implies is the clean image (in float64, so that 1 / sqrt(a_T) is harmless)."""
    process = DDPM.of(ddim(kind))
    x0, noise = (x.double() for x in tensors(4, 4, 3, 3))
    t = process.time(torch.tensor([0, 10, 500, 999]))
    x_t = process.add_noise(x0, noise, t)
    torch.testing.assert_close(process.to_x0(process.target(x0, noise, t), x_t, t), x0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_step_equals_ddim(kind: str, set_alpha_to_one: bool, eta: float) -> None:
    """With variance_noise 0 DDIMScheduler.step returns the mean; with 1 it returns mean + std. First, middle, last."""
    scheduler = ddim(kind, set_alpha_to_one=set_alpha_to_one, steps_offset=1)
    scheduler.set_timesteps(20)
    process, (x_t, pred) = DDPM.of(scheduler), tensors(2, 4, 3, 3)
    assert process.sampler == type(scheduler).__name__
    for k in (0, 10, 19):
        now = int(scheduler.timesteps[k])
        t, t_next = (process.time(torch.full((2,), max(i, -1))) for i in (now, now - 50))
        mean, std = process.step(pred, x_t, t, t_next, eta)
        expected = [
            scheduler.step(pred, now, x_t, eta=eta, variance_noise=torch.full_like(x_t, value)).prev_sample
            for value in (0.0, 1.0)
        ]
        torch.testing.assert_close(mean, expected[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mean + std.reshape(-1, 1, 1, 1), expected[1], rtol=1e-6, atol=1e-6)


def test_the_last_step_has_noise_only_without_alpha_one() -> None:
    """set_alpha_to_one: 1 - a_next = 0, so std 0; else a_next = a_1 < 1 and step i = 1 keeps a little noise."""
    x, t = torch.zeros(1, 4, 2, 2), torch.tensor([2 / 1000])
    for one, positive in ((True, False), (False, True)):
        _, std = DDPM.of(ddim(set_alpha_to_one=one)).step(x, x, t, torch.zeros(1), eta=1.0)
        assert bool(std > 0) is positive


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_schedule_in_float32(dtype: torch.dtype) -> None:
    """a_1000 = 0.0047 has 3 digits in bfloat16; the result must be the float32 result, rounded once at the end."""
    process = DDPM.of(ddim("v_prediction"))
    x0, noise = (x.to(dtype) for x in tensors(3, 4, 3, 3))
    t = torch.tensor([0.001, 0.5, 1.0])
    for function in (process.add_noise, process.target, process.to_x0):
        got, exact = function(x0, noise, t), function(x0.float(), noise.float(), t)
        assert got.dtype == dtype
        assert torch.equal(got, exact.to(dtype))
    assert process.step(x0, noise, t, t / 2, 1.0)[0].dtype == torch.float32


def test_time_and_index_are_inverse_and_clamp() -> None:
    process = DDPM.of(ddim())
    every = torch.arange(-1, 1000)
    assert torch.equal(process.index(process.time(every)), every)
    assert process.index(torch.tensor([-0.5, 0.0, 1.0, 1.7])).tolist() == [-1, -1, 999, 999]


def test_training_times_are_uniform_over_the_steps_and_seeded() -> None:
    process = DDPM.of(ddim())
    t = process.sample_t(4000, torch.Generator().manual_seed(3))
    assert torch.equal(t, process.sample_t(4000, torch.Generator().manual_seed(3)))
    index = process.index(t)
    assert index.min() >= 0
    assert index.max() <= 999
    assert abs(float(index.float().mean()) - 499.5) < 4 * 289 / 4000**0.5  # 4 standard errors of a uniform


def test_reading_schedulers() -> None:
    """PNDM hands over its final alpha, Euler has none (1), and sample prediction is refused in one line."""
    pndm = PNDMScheduler(**SCHEDULE, set_alpha_to_one=False)
    assert DDPM.of(pndm).final_alpha == pytest.approx(float(pndm.alphas_cumprod[0]))
    assert DDPM.of(EulerDiscreteScheduler(**SCHEDULE)).final_alpha == 1.0
    with pytest.raises(InputError, match="prediction_type 'sample'"):
        DDPM.of(DDIMScheduler(prediction_type="sample"))
