"""Ctrl-U's trust in a reward: one that changes its mind about the same picture is trusted less.

Zhang et al. 2024, arXiv 2410.11236: the same latents and noise are looked at at a neighbouring time, too, which gives a
second image x0':

    U = |reward(x0) - reward(x0')| / width      loss * exp(-U) + penalty * U

Left out: Ctrl-U's pixel-wise rewards. May import: types.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from visfeedback.types.protocols import Process
from visfeedback.types.records import Frozen


class Uncertainty(Frozen):
    """Ctrl-U's trust in a reward."""

    on: bool = False
    """whether the neighbouring time is looked at: a second network call, decoding and reward"""
    gap: float = Field(default=0.001, gt=0, lt=1)
    """how far away the neighbouring time is; one of a thousand steps is 0.001"""
    width: float = Field(default=1.0, gt=0)
    """change of the score, in its own units, at which trust falls to 1/e"""
    penalty: float = Field(default=0.1, ge=0)
    """weight of U itself: the network learns images on which the reward is sure"""

    @torch.no_grad()
    def neighbour(self, process: Process, x: Tensor, image: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,C,h,w) and t (B,) moved to the noisier time, with the image and the noise that make x at ``t``."""
        later = (t + self.gap).clamp(max=1.0)
        # The noise that together with the image makes x, by linearity: x = add_noise(image, noise, t).
        zero = process.add_noise(image, torch.zeros_like(image), t)
        one = process.add_noise(image, torch.ones_like(image), t)
        return process.add_noise(image, (x - zero) / (one - zero), later), later

    def weigh(self, losses: Tensor, scores: Tensor, again: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) losses as they are trusted, and U; ``again`` (B,): the scores of x0'."""
        doubt = (scores - again).abs() / self.width
        return losses * torch.exp(-doubt) + self.penalty * doubt, doubt
