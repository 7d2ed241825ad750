"""From the scores of images that still have a graph to a loss, and what a reward must be like for that.

Shapes of the loss, per image, r the score:

    linear     -r                                 DRaFT (Clark et al. 2023)
    hinge      max(0, margin - r)                 ReFL (Xu et al. 2023), margin 2
    distance   |margin - r|                       AlignProp (Prabhudesai et al. 2023), margin 10
    aspects    sum over d of max(0, margins[d] - r_d)   UniFL (2024): every part of a mix has a margin of its own, so
                                                  an aspect that is good enough no longer pulls

each times ``scale``. May import: types, plugins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.types.protocols import Context
from visfeedback.types.records import Frozen


class Objective(Frozen):
    """What is made of a score."""

    shape: Literal["linear", "hinge", "distance", "aspects"] = "linear"
    """`linear`: -score; `hinge`: max(0, margin - score); `distance`: |margin - score|; `aspects`: a hinge for each part
    of a mix"""
    margin: float = 2.0
    """score from which an image is good enough (hinge), or that it should have (distance), in the reward's units"""
    margins: tuple[float, ...] = ()
    """aspects: one margin for each part of the mix, in its normalised units"""
    scale: float = Field(default=1.0, gt=0)
    """the loss is multiplied by this: 0.001 in ReFL, 0.01 in AlignProp"""

    @model_validator(mode="after")
    def _margins_fit(self) -> Objective:
        if (self.shape == "aspects") != bool(self.margins):
            raise ValueError('give margins, one for each part of the mix, exactly when shape = "aspects"')
        return self

    def losses(self, reward: Any, pixels: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B,) losses with a graph to pixels (B,3,H,W) in [0,1], and (B,) scores."""
        if self.shape == "aspects":
            return self._aspects(reward, pixels, prompts)
        scores = _checked(reward.from_pixels(pixels, prompts), pixels, reward)
        losses = {
            "linear": lambda: -scores,
            "hinge": lambda: F.relu(self.margin - scores),
            "distance": lambda: (self.margin - scores).abs(),
        }[self.shape]()
        return self.scale * losses, scores

    def _aspects(self, reward: Any, pixels: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        if not hasattr(reward, "parts_from_pixels"):
            raise InputError(f"{reward.name} has no parts, and method.objective.shape = aspects wants a mix@FILE.toml")
        parts = reward.parts_from_pixels(pixels, prompts)  # (B, R), normalised
        if parts.shape[1] != len(self.margins):
            raise InputError(
                f"the mix has {parts.shape[1]} parts, method.objective.margins has {len(self.margins)}; give one each"
            )
        _checked(parts.sum(1), pixels, reward)
        return self.scale * F.relu(parts.new_tensor(self.margins) - parts).sum(1), parts.mean(1)


def reward_of(ctx: Context, method: str) -> Any:
    """The reward whose gradient is learned from. Raises InputError when there is none, or none with a gradient."""
    reward: Any = ctx.reward
    if reward is None:
        raise InputError(f"{method} learns from a reward's gradient; name one: --reward.name shapes_clip")
    if not reward.differentiable:
        raise InputError(
            f"{reward.name} has no gradient, and {method} learns from one; name a reward that has, such as clipscore, "
            "pickscore, hpsv2, imagereward, aesthetic or shapes_clip, or choose --method.name raft"
        )
    return reward


def watched(ctx: Context, pixels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """What the reward that is only logged says of the same pixels, if there is one."""
    return {} if ctx.watch is None else {"watched_reward": ctx.watch(pixels.detach(), prompts).mean()}


def _checked(scores: Tensor, pixels: Tensor, reward: Any) -> Tensor:
    """float32 scores. Raises InputError when they are not one number an image with a gradient to its pixels."""
    if scores.shape != (len(pixels),):
        raise InputError(
            f"{reward.name} gave scores of shape {tuple(scores.shape)} for {len(pixels)} images; expected one each"
        )
    if not bool(torch.isfinite(scores.detach()).all()):
        raise InputError(f"{reward.name} gave an image a score that is no number; try another --reward.name")
    if pixels.requires_grad and not scores.requires_grad:
        raise InputError(
            f"{reward.name} gives scores that do not depend on the image; there is nothing to learn from it"
        )
    return scores if scores.dtype == torch.float64 else scores.float()
