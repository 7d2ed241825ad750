"""ReFL: stop denoising at a random late step, look at the image predicted there, and follow the reward's gradient.

Xu et al., "ImageReward" (2023, arXiv 2304.05977), Algorithm 1, and the authors' released code: of 40 steps without
guidance a random one of the last ten is taken, all before it run without a graph, and one prediction has one:

    x0   = the image that the prediction at the step implies      loss = scale * max(0, margin - reward(decode(x0)))

Options: ``objective.shape = aspects`` is UniFL's hinge for each part of a mix (Zhang et al. 2024, arXiv 2404.05595);
``uncertainty`` is Ctrl-U's weighting (Zhang et al. 2024, arXiv 2410.11236): the same latents and noise are looked at
at a neighbouring time, too, and a reward that changes its mind is trusted less:

    U = |reward(x0) - reward(x0')| / width      loss * exp(-U) + penalty * U

Left out: the pre-training loss that the released code has and its script does not use; Ctrl-U's pixel-wise rewards.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from visfeedback.methods._likelihood import numbers
from visfeedback.methods._rewarded import Objective, reward_of, watched
from visfeedback.methods._start import Start, start
from visfeedback.sampling.differentiable import decoded, descend, predicted_image
from visfeedback.types.batches import PromptBatch
from visfeedback.types.protocols import Backbone, Context
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


class ReFL(Frozen):
    """Knobs of reward feedback learning; steps and guidance are those of `[rollout]`."""

    eats: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = True

    window: tuple[float, float] = (0.75, 1.0)
    """part of the steps from which the one with a gradient is drawn; 0.75 1.0 is 30 ... 39 of 40"""
    objective: Objective = Objective(shape="hinge", margin=2.0, scale=1e-3)
    uncertainty: Uncertainty = Uncertainty()
    checkpointing: bool = False
    """compute network and decoder again in the backward pass instead of keeping their activations"""
    guide_whole: bool = False
    """with guidance: a gradient through the unconditional branch, too"""

    @field_validator("window")
    @classmethod
    def _a_part(cls, window: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= window[0] < window[1] <= 1:
            raise ValueError("expected 0 <= first < last <= 1, for example 0.75 1.0")
        return window

    def loss(self, backbone: Backbone, batch: PromptBatch, ctx: Context) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of a batch of prompts."""
        reward = reward_of(ctx, "refl")
        begun = start(backbone, batch, self.guide_whole, self.checkpointing)
        step = self._step(batch.steps, ctx.generator)
        with torch.no_grad():
            x = descend(begun.predict, backbone.process, begun.noise, begun.times[: step + 1], begun.sources, batch.eta)
        t = begun.times[step].expand(len(x)).to(x.device)
        image = predicted_image(begun.predict, backbone.process, x, t)
        pixels, texts = decoded(backbone, image, self.checkpointing), [prompt.text for prompt in batch.prompts]
        losses, scores = self.objective.losses(reward, pixels, texts)
        metrics = {"reward": scores.mean(), "reward_std": scores.std(correction=0), "step_of_gradient": t.mean()}
        metrics |= watched(ctx, pixels, texts)
        if self.uncertainty.on:
            doubt = (scores - self._seen_again(backbone, batch, reward, begun, x, image, t)).abs()
            doubt = doubt / self.uncertainty.width
            losses = losses * torch.exp(-doubt) + self.uncertainty.penalty * doubt
            metrics["uncertainty"] = doubt.mean()
        return losses.mean(), numbers(metrics)

    def _step(self, steps: int, generator: torch.Generator) -> int:
        """Which step has the gradient, 0 = the first."""
        low = min(int(self.window[0] * steps), steps - 1)
        high = max(low + 1, round(self.window[1] * steps))
        return int(torch.randint(low, high, (1,), generator=generator, device=generator.device))

    def _judged(self, backbone: Backbone, batch: PromptBatch, reward: object, image: Tensor) -> tuple[Tensor, Tensor]:
        pixels = decoded(backbone, image, self.checkpointing)
        return self.objective.losses(reward, pixels, [prompt.text for prompt in batch.prompts])

    def _seen_again(
        self, backbone: Backbone, batch: PromptBatch, reward: object, begun: Start, x: Tensor, image: Tensor, t: Tensor
    ) -> Tensor:
        """(B,) scores at the neighbouring, noisier time, with the same image and noise below."""
        later = (t + self.uncertainty.gap).clamp(max=1.0)
        with torch.no_grad():
            process, clean = backbone.process, image.detach()
            # The noise that together with the image makes x, by linearity: x = add_noise(image, noise, t).
            zero = process.add_noise(clean, torch.zeros_like(clean), t)
            one = process.add_noise(clean, torch.ones_like(clean), t)
            noise = (x - zero) / (one - zero)
            moved = process.add_noise(clean, noise, later)
        return self._judged(backbone, batch, reward, predicted_image(begun.predict, process, moved, later))[1]


Method = ReFL
