"""The tensors that live inside a stage: conditions and the batches that methods eat.

Axes: B batch, T denoising steps, C,h,w latent, H,W pixels, L tokens, D width, P pooled width.
Time ``t`` is in [0, 1] and 1 is pure noise, in every family of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from visfeedback.types.records import Prompt

Batch = TypeVar("Batch", bound="_Tensors")


@dataclass(frozen=True)
class _Tensors:
    """Moves and slices every tensor field (and nested condition) together."""

    def to(self: Batch, device: torch.device | str) -> Batch:
        return self._map(lambda tensor: tensor.to(device))

    def rows(self: Batch, index: Any) -> Batch:
        """Select along the batch axis; ``index`` is a slice, a list or a LongTensor."""
        return self._map(lambda tensor: tensor[index])

    def _map(self: Batch, function: Any) -> Batch:
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = function(value)
            elif isinstance(value, _Tensors):
                changed[item.name] = value._map(function)
            elif isinstance(value, dict):
                changed[item.name] = {k: function(v) for k, v in value.items()}
        return replace(self, **changed)


@dataclass(frozen=True)
class Condition(_Tensors):
    """What the network is told about the prompts."""

    tokens: Tensor  # (B, L, D)
    pooled: Tensor | None = None  # (B, P)
    extras: dict[str, Tensor] = field(default_factory=dict)  # (B, ...) each: SDXL time ids, FLUX guidance

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Join along the batch axis."""
        pooled = [p.pooled for p in parts if p.pooled is not None]
        return Condition(
            tokens=torch.cat([p.tokens for p in parts]),
            pooled=torch.cat(pooled) if pooled else None,
            extras={key: torch.cat([p.extras[key] for p in parts]) for key in parts[0].extras},
        )


@dataclass(frozen=True)
class Pairs(_Tensors):
    """Preferred and rejected images of the same prompts, with the noise and time at which they are compared."""

    winner: Tensor  # (B, C, h, w) latents
    loser: Tensor  # (B, C, h, w)
    condition: Condition
    probability: Tensor  # (B,) in [.5, 1]: how sure the winner is better
    weight: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w), shared by winner and loser
    t: Tensor  # (B,) in (0, 1]
    reference_errors: Tensor | None = None  # (B, 2) winner, loser under the reference, when cached
    same: Tensor | None = None  # (B, 2) long: winners and losers that are one image under one noise share a number


@dataclass(frozen=True)
class Scored(_Tensors):
    """Images with a score each, and the noise and time at which they are looked at."""

    latents: Tensor  # (B, C, h, w)
    condition: Condition
    scores: Tensor  # (B,) as the reward settings normalise them (native units when they do not), higher is better
    group: Tensor  # (B,) long: images of one prompt share a number
    weight: Tensor  # (B,) what the method's `weigh` made of the scores of the whole set; the scores without one
    noise: Tensor  # (B, C, h, w)
    t: Tensor  # (B,) in (0, 1]
    unconditional: Condition | None = None  # (B) of the negative prompts, where guidance is part of the loss
    real: Scored | None = None  # as many images of `data.real`: what the model should go on being able to draw
    share: float = 1.0  # images learned by this process over the mean of all processes; 0 = a round without any


@dataclass(frozen=True)
class Rollouts(_Tensors):
    """Denoising paths of the current policy; ``latents[:, k]`` to ``latents[:, k + 1]`` is step k.

    A batch of the training loop holds a piece of each path: the steps that one network call learns from.
    """

    latents: Tensor  # (B, T + 1, C, h, w), first = noise, last = image
    t: Tensor  # (B, T + 1)
    log_prob: Tensor  # (B, T) nats per latent element (mean), fp32, when the path was drawn
    condition: Condition
    scores: Tensor  # (B,)
    group: Tensor  # (B,) long
    weight: Tensor  # (B,) advantages: what the method's `weigh` made of the scores of the whole round
    unconditional: Condition | None = None  # (B); None = drawn without guidance
    guidance: float = 1.0
    eta: float = 1.0
    reference_log_prob: Tensor | None = None  # (B, T) of the same steps under the reference
    better: Tensor | None = None  # (B, K) P(image is better than the k-th of its group); NaN = nobody was asked
    share: float = 1.0  # rows here of those planned; the others have weight 0 and would add no gradient


@dataclass(frozen=True)
class PromptBatch:
    """Prompts to draw, for methods that make their own images."""

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    steps: int = 20
    guidance: float = 1.0
    eta: float = 0.0

    def to(self, device: torch.device | str) -> PromptBatch:
        """Itself: there are no tensors yet."""
        return self
