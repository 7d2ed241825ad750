"""The Gaussian that a stochastic denoising step draws from, and its log-probability.

Mean over elements instead of their sum: a sum over 16,384 latent elements overflows ratios, and a mean does not
change with resolution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw(mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """One step: ``mean + std * noise``; mean, noise (B, ...), std (B,)."""
    return mean + _per_image(std, mean) * noise


def log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B,) log N(x; mean, std^2) in nats per element, float32.

    x, mean (B, ...); std (B,), positive. ``x`` is a constant of the path: pass it detached.
    Raises ValueError when a std is 0: a deterministic step has no density.
    """
    if bool((std <= 0).any()):
        raise ValueError("a step with standard deviation 0 has no log-probability: eta must be > 0")
    x, mean, std = x.float(), mean.float(), _per_image(std.float(), mean)
    density = -((x - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(dim=1)


def _per_image(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
