"""Denoising error of single images: what likelihood-type methods weigh and add up.

-log p(image | prompt) is, up to a constant and the weighting over noise levels that every trainer drops, the error
of the network's prediction averaged over noise and time (Ho et al. 2020, L_simple).
May import: types.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visfeedback.types.batches import Condition, Scored
from visfeedback.types.protocols import Backbone


def errors(backbone: Backbone, batch: Scored, with_real: bool) -> tuple[Tensor, Tensor | None]:
    """(B,) mean over C,h,w of (prediction - target)^2 of each image by itself, fp32, and the same of the real images
    if the batch brings some and they are wanted, else None; one network call for both."""
    real = batch.real
    if real is None or not with_real:
        return _errors(backbone, batch.latents, batch.noise, batch.t, batch.condition), None
    latents, noise = torch.cat([batch.latents, real.latents]), torch.cat([batch.noise, real.noise])
    condition = Condition.cat([batch.condition, real.condition])
    found = _errors(backbone, latents, noise, torch.cat([batch.t, real.t]), condition)
    return found[: len(batch.latents)], found[len(batch.latents) :]


def _errors(backbone: Backbone, latents: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> Tensor:
    prediction = backbone.predict(backbone.process.add_noise(latents, noise, t), t, condition)
    target = backbone.process.target(latents, noise, t)
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Scalars as floats, with one wait for the device."""
    return dict(zip(metrics, torch.stack([value.detach().float() for value in metrics.values()]).tolist(), strict=True))
