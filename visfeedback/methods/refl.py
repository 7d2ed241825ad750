"""ReFL: stop denoising at a random late step, look at the image predicted there, and follow the reward's gradient.

Xu et al., "ImageReward" (2023, arXiv 2304.05977), Algorithm 1, and the authors' released code: of 40 steps without
guidance a random one of the last ten is taken, all before it run without a graph, and one prediction has one:

    x0   = the image that the prediction at the step implies      loss = scale * max(0, margin - reward(decode(x0)))

Options: ``objective.shape = aspects`` is UniFL's hinge for each part of a mix (Zhang et al. 2024, arXiv 2404.05595);
``uncertainty`` is Ctrl-U's weighting, x0' being the image that the prediction at a neighbouring time implies. Left out:
the pre-training loss that the released code has and its script does not use.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor

from visfeedback.methods._likelihood import numbers
from visfeedback.methods._rewarded import Objective, reward_of, watched
from visfeedback.methods._start import start
from visfeedback.methods._uncertainty import Uncertainty
from visfeedback.sampling.differentiable import decoded, descend, predicted_image
from visfeedback.types.batches import PromptBatch
from visfeedback.types.protocols import Backbone, Context
from visfeedback.types.records import Frozen


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
        step, process = self._step(batch.steps, ctx.generator), backbone.process
        with torch.no_grad():
            x = descend(begun.predict, process, begun.noise, begun.times[: step + 1], begun.sources, batch.eta)
        t = begun.times[step].expand(len(x)).to(x.device)
        image = predicted_image(begun.predict, process, x, t)
        pixels, texts = decoded(backbone, image, self.checkpointing), [prompt.text for prompt in batch.prompts]
        losses, scores = self.objective.losses(reward, pixels, texts)
        metrics = {"reward": scores.mean(), "reward_std": scores.std(correction=0), "step_of_gradient": t.mean()}
        metrics |= watched(ctx, pixels, texts)
        if self.uncertainty.on:
            other = predicted_image(begun.predict, process, *self.uncertainty.neighbour(process, x, image, t))
            again = self.objective.losses(reward, decoded(backbone, other, self.checkpointing), texts)[1]
            losses, doubt = self.uncertainty.weigh(losses, scores, again)
            metrics["uncertainty"] = doubt.mean()
        return losses.mean(), numbers(metrics)

    def _step(self, steps: int, generator: torch.Generator) -> int:
        """Which step has the gradient, 0 = the first."""
        low = min(int(self.window[0] * steps), steps - 1)
        high = max(low + 1, round(self.window[1] * steps))
        return int(torch.randint(low, high, (1,), generator=generator, device=generator.device))


Method = ReFL
