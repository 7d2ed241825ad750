"""DRaFT and AlignProp: the reward's gradient through the sampler itself, through as many of its last steps as wanted.

DRaFT-K (Clark et al., "Directly Fine-Tuning Diffusion Models on Differentiable Rewards", 2023, arXiv 2309.17400): the
gradient goes back through the last K steps. DRaFT-LV: K = 1, and the finished image is given the last step's noise
``noisings`` more times, which costs one network call each and lowers the gradient's variance:

    loss = mean over {x0, x0^1 ... x0^n} of objective(reward(decode(x0))),   x0^i = step(add_noise(sg(x0), eps_i, t_1))

AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739): K is drawn anew for each batch, uniformly or, as in the authors'
code, as S - round(N(mean, std)). Steps without a gradient run without a graph: detaching their predictions, as that
code does, gives the same gradient at more cost. ``uncertainty`` is Ctrl-U's weighting, x0' being the last step from a
neighbouring time, without noise of its own; with ``noisings`` the trust is that in the finished image. Left out: LoRA
scaling at sampling time (DRaFT, section 5).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from visfeedback.methods._likelihood import numbers
from visfeedback.methods._rewarded import Objective, reward_of, watched
from visfeedback.methods._start import Start, start
from visfeedback.methods._uncertainty import Uncertainty
from visfeedback.sampling.differentiable import decoded, descend, sample
from visfeedback.types.batches import PromptBatch
from visfeedback.types.protocols import Backbone, Context
from visfeedback.types.records import Frozen


class DRaFT(Frozen):
    """Knobs of direct reward fine-tuning; steps, guidance and eta are those of `[rollout]`."""

    eats: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = True

    truncation: Literal["fixed", "uniform", "normal"] = "fixed"
    """how many last steps have a gradient: always `last`; any number from 1 to all of them; or all but round(N(mean,
    std) * steps) of them"""
    last: int = Field(default=1, ge=1)
    """fixed: K; more than there are steps means all of them"""
    mean: float = Field(default=0.84, ge=0, le=1)
    """normal: share of the steps without a gradient, on average; AlignProp: 42 of 50"""
    std: float = Field(default=0.1, ge=0)
    """normal: its deviation; AlignProp: 5 of 50"""
    noisings: int = Field(default=0, ge=0)
    """more looks at each finished image under new noise: DRaFT-LV, which has 2; only with `last` 1"""
    objective: Objective = Objective()
    uncertainty: Uncertainty = Uncertainty()
    checkpointing: bool = True
    """compute each step and the decoder again in the backward pass: memory of one step instead of K"""
    guide_whole: bool = True
    """with guidance: a gradient through the unconditional branch, too. Without it the network's part of each step's
    derivative is about `scale` times too large, which adds up over steps; `last` 1 can do without and costs less"""

    @model_validator(mode="after")
    def _one_step_for_low_variance(self) -> DRaFT:
        if self.noisings and (self.truncation, self.last) != ("fixed", 1):
            raise ValueError('noisings look at the last step: they go with truncation = "fixed" and last = 1')
        return self

    def loss(self, backbone: Backbone, batch: PromptBatch, ctx: Context) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of a batch of prompts."""
        reward = reward_of(ctx, "draft")
        begun = start(backbone, batch, self.guide_whole, self.checkpointing)
        first = self.first_step(batch.steps, ctx.generator)
        process, times = backbone.process, begun.times
        # The last step by itself, for its beginning is looked at again.
        x = sample(begun.predict, process, begun.noise, times[:-1], begun.sources, first, batch.eta)
        image = descend(begun.predict, process, x, times[-2:], begun.sources, batch.eta)
        pixels, texts = decoded(backbone, image, self.checkpointing), [prompt.text for prompt in batch.prompts]
        losses, scores = self.objective.losses(reward, pixels, texts)
        for _ in range(self.noisings):
            noised = self._noised(backbone, begun, image, batch.eta)
            losses = losses + self.objective.losses(reward, decoded(backbone, noised, self.checkpointing), texts)[0]
        losses = losses / (1 + self.noisings)
        metrics = {"reward": scores.mean(), "reward_std": scores.std(correction=0), **watched(ctx, pixels, texts)}
        if self.uncertainty.on:
            other = self._neighbour(backbone, begun, x, image)
            again = self.objective.losses(reward, decoded(backbone, other, self.checkpointing), texts)[1]
            losses, doubt = self.uncertainty.weigh(losses, scores, again)
            metrics["uncertainty"] = doubt.mean()
        return losses.mean(), numbers(metrics) | {"steps_with_gradient": float(batch.steps - first)}

    def first_step(self, steps: int, generator: torch.Generator) -> int:
        """The first step with a gradient, 0 ... steps - 1; drawn once a batch."""
        if self.truncation == "fixed":
            return max(0, steps - self.last)
        if self.truncation == "uniform":
            return int(torch.randint(steps, (1,), generator=generator, device=generator.device))
        drawn = torch.randn((1,), generator=generator, device=generator.device)
        return min(max(round(steps * (self.mean + self.std * float(drawn))), 0), steps - 1)

    def _noised(self, backbone: Backbone, begun: Start, image: Tensor, eta: float) -> Tensor:
        """The last step once more, from the finished image under new noise; the image itself is a constant."""
        clean, process = image.detach(), backbone.process
        t = begun.times[-2].expand(len(clean)).to(clean.device)
        noisy = process.add_noise(clean, begun.sources.noise(clean.shape[1:], clean.dtype), t)
        return descend(begun.predict, process, noisy, begun.times[-2:], begun.sources, eta)

    def _neighbour(self, backbone: Backbone, begun: Start, x: Tensor, image: Tensor) -> Tensor:
        """The last step from its neighbouring time; x and the image are constants."""
        process, t = backbone.process, begun.times[-2].expand(len(x))
        x, later = self.uncertainty.neighbour(process, x, image, t)
        return descend(begun.predict, process, x, torch.stack([later[0], begun.times[-1]]), begun.sources)


Method = DRaFT
