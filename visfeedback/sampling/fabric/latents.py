"""A reference as the denoiser sees it: encoded by the pipeline's VAE and noised to a time of its schedule.

What a network expects at timestep t is a function of t and of the table of noise alone, so samplers share what is kept:
sqrt(a) z + sqrt(1-a) eps for networks trained on a table of alphas, (1 - s) z + s eps for flow matching.
May import: types.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.sampling.fabric.references import fitted


@torch.no_grad()
def encode(pipe: Any, image: Image.Image, height: int, width: int) -> Tensor:
    """RGB image -> scaled latents (1, C, h, w) of ``height`` x ``width`` px: the mean, so that nothing is random."""
    vae = pipe.vae
    upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    before = vae.dtype
    pixels = torch.from_numpy(np.array(fitted(image, width, height))).permute(2, 0, 1)[None].float() / 127.5 - 1
    try:
        if upcast:
            vae.to(torch.float32)
        encoded = vae.encode(pixels.to(_device(pipe), vae.dtype))
    finally:
        if upcast:
            vae.to(before)
    mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return scaled(vae.config, mean)


def _device(pipe: Any) -> torch.device:
    """Where the pipeline computes, also when its parts wait on the CPU."""
    return torch.device(getattr(pipe, "_execution_device", pipe.device))


def scaled(config: Any, mean: Tensor) -> Tensor:
    """The VAE's latents in the units of the denoiser."""
    factor, shift = getattr(config, "scaling_factor", None) or 1.0, getattr(config, "shift_factor", None) or 0.0
    average, spread = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if average is not None and spread is not None:
        each = (1, -1, 1, 1)
        return (mean - mean.new_tensor(average).view(each)) * factor / mean.new_tensor(spread).view(each)
    return (mean - shift) * factor


def noised(scheduler: Any, latents: Tensor, noise: Tensor, t: float) -> Tensor:
    """What the denoiser is given at timestep ``t`` (the scheduler's units) for clean ``latents`` (n, C, h, w)."""
    signal, spread = shares(scheduler, t)
    return (signal * latents.cpu().double() + spread * noise.cpu().double()).to(latents)  # not every GPU has doubles


def shares(scheduler: Any, t: float) -> tuple[float, float]:
    """Factors of the clean latents and of the noise at ``t``."""
    if _is_flow(scheduler):
        s = t / scheduler.config.num_train_timesteps
        return 1 - s, s
    if hasattr(scheduler, "precondition_inputs"):  # EDM: timesteps are log(sigma) / 4
        sigma = float(np.exp(4 * t))
        scale = float(scheduler.precondition_inputs(torch.ones((), dtype=torch.float64), sigma))
        return scale, scale * sigma
    alpha = alpha_at(scheduler, t)
    return alpha**0.5, (1 - alpha) ** 0.5


def alpha_at(scheduler: Any, t: float) -> float:
    """The share of signal at ``t``; between whole timesteps log sigma is linear, as samplers place them."""
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise InputError(
            f"{type(scheduler).__name__} says neither alphas_cumprod nor flow matching; give the pipeline a DDIM, "
            "Euler or FlowMatchEuler scheduler"
        )
    alphas = np.clip(np.asarray(table.detach().cpu(), dtype=np.float64), 1e-12, 1 - 1e-12)
    log_sigma = np.interp(t, np.arange(len(alphas)), 0.5 * np.log((1 - alphas) / alphas))
    return float(1 / (1 + np.exp(2 * log_sigma)))


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    named = type(scheduler).__name__.startswith("FlowMatch")
    return named or config.get("use_flow_sigmas") is True or config.get("prediction_type") == "flow_prediction"


def noise_of(image: str, seed: int, t: float | None, shape: tuple[int, ...]) -> Tensor:
    """(1, *shape) of a reference's noise, drawn on the CPU from its image id, the seed and the timestep if any."""
    when = "" if t is None else f"{t:.4f}"
    digest = hashlib.sha256(f"fabric\0{seed}\0{image}\0{when}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.randn((1, *shape), generator=generator)
