"""Drift: how far the policy's predictions have moved from the reference's. One definition for training and evaluation.

    drift = E over (noise, t) of mean((policy(x_t, t) - reference(x_t, t))^2),   x_t = add_noise(latents, noise, t)

In the units of the prediction, so 0.01 is 1% of the variance of the noise. 0 exactly when nothing was learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visfeedback.types.batches import Condition
from visfeedback.types.protocols import Backbone


@torch.no_grad()
def drift(
    backbone: Backbone, latents: Tensor, condition: Condition, generator: torch.Generator, draws: int = 1
) -> float:
    """Mean over images, elements and ``draws`` of (noise, t) for each image.

    latents (B, C, h, w), scaled; condition (B); the generator decides noise and times, whatever the device. The whole
    batch runs at once. Put a network with dropout into eval mode first.
    """
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, not {draws}")
    total = sum(_one_draw(backbone, latents, condition, generator) for _ in range(draws))
    return float(total) / draws


def _one_draw(backbone: Backbone, latents: Tensor, condition: Condition, generator: torch.Generator) -> float:
    noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents)
    t = backbone.process.sample_t(len(latents), generator).to(latents.device)
    x_t = backbone.process.add_noise(latents, noise, t)
    with backbone.weights("policy"):
        policy = backbone.predict(x_t, t, condition)
    with backbone.weights("reference"):
        reference = backbone.predict(x_t, t, condition)
    return float((policy.float() - reference.float()).square().mean())
