"""DDPO: policy gradient on denoising steps, with the clipped ratios of PPO; GRPO's group-relative advantages as option.

Papers: Black et al., "Training Diffusion Models with Reinforcement Learning" (2023, arXiv 2305.13301), DDPO-IS, and the
authors' released code; Shao et al. 2024 (GRPO) and Liu et al. 2025 (Flow-GRPO) for the group's advantages and the
penalty. Per path and step, with log-probabilities l per latent element (mean) and advantage A:

    rho  = exp(l - l_when_drawn)
    loss = mean max(-A rho, -A clamp(rho, 1 - clip, 1 + clip)) + kl * mean |mu - mu_ref|^2 / (2 sigma^2)

A is the score minus what was to be expected (``advantage``), clipped; clip is as small as 1e-4 because l is a mean over
elements. rho is 1 before the first update of a round. Guidance is part of the policy, its unconditional branch without
gradient. With ``even_steps`` rho = exp((l - l_when_drawn) / reach), reach being the standard deviations by which a
step's mean follows the prediction: every step then pushes the prediction alike and is cut alike, which is what the
reweighting of GRPO-Guard (Wang et al. 2025, arXiv 2510.22319) does for flows; its correction of the ratio's mean is
left out, and so is the score-function variant DDPO-SF, which is this one with a single update a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from visfeedback.methods._advantages import by_batch, by_group, by_prompt, prompt_memory
from visfeedback.sampling.rollout import log_probs_and_means, reach
from visfeedback.types.batches import Rollouts
from visfeedback.types.protocols import Backbone, Context
from visfeedback.types.records import Frozen


class DDPO(Frozen):
    """Knobs of DDPO."""

    eats: ClassVar[Literal["rollouts"]] = "rollouts"

    advantage: Literal["prompt", "batch", "group"] = "prompt"
    """what a score is compared with: the last ones of its prompt, all of the round, or (GRPO) the other images of the
    prompt in the round"""
    spread: Literal["group", "batch", "none"] = "group"
    """`advantage = "group"`: whose standard deviation divides; Flow-GRPO takes the batch's"""
    memory: int = Field(default=32, ge=1)
    """`advantage = "prompt"`: scores of a prompt that are remembered"""
    least: int = Field(default=16, ge=1)
    """`advantage = "prompt"`: scores of a prompt that are needed; until then the whole round is compared"""
    advantage_clip: float = Field(default=5.0, gt=0)
    """advantages are cut to this size"""
    clip: float = Field(default=1e-4, gt=0, lt=1)
    """how far a step's ratio may leave 1 before it is not pushed further"""
    even_steps: bool = False
    """let every step push the prediction alike; else the least noisy ones of a path, where an image's plan is long
    decided, are learned most"""
    kl: float = Field(default=0.0, ge=0)
    """strength of the pull to the reference, which then runs beside the policy; Flow-GRPO: 0.04 or 0.01"""

    @property
    def least_group(self) -> int:
        """Images of a prompt without which there is nothing to compare."""
        return 2 if self.advantage == "group" else 1

    @property
    def needs_all(self) -> bool:
        """Whether paths of advantage 0 have a gradient, too: the pull to the reference does not go by advantage."""
        return self.kl > 0

    def weigh(self, scores: Tensor, group: Tensor, prompts: Sequence[str], state: dict[str, Any]) -> Tensor:
        """(N,) advantages; exactly 0 where all scores that are compared are equal, which without `kl` costs nothing."""
        if self.advantage == "group":
            found = by_group(scores, group, self.spread)
        elif self.advantage == "prompt":
            found = by_prompt(scores, prompts, prompt_memory(state, "ddpo_scores"), self.memory, self.least)
        else:
            found = by_batch(scores)
        found = found.clamp(-self.advantage_clip, self.advantage_clip)
        state["metrics"] = {"advantage_size": found.abs().mean().item(), "used": (found != 0).float().mean().item()}
        return found

    def loss(self, backbone: Backbone, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of some steps of some paths."""
        now, means, std = log_probs_and_means(backbone, batch)
        change = now - batch.log_prob  # (B, T)
        if self.even_steps:
            change = change / reach(backbone.process, batch)
        ratio = change.exp()
        push = -batch.weight[:, None]
        loss = torch.maximum(push * ratio, push * ratio.clamp(1 - self.clip, 1 + self.clip)).mean()
        with torch.no_grad():
            far = (ratio - 1).abs()
            known = {
                "ratio_off": far.mean(),
                "clipped": (far > self.clip).float().mean(),
                "approx_kl": 0.5 * change.square().mean(),
            }
        if self.kl:
            penalty = self._penalty(backbone, batch, means, std)
            loss, known["kl"] = loss + self.kl * penalty, penalty.detach()
        return loss, dict(zip(known, torch.stack(list(known.values())).tolist(), strict=True))

    def _penalty(self, backbone: Backbone, batch: Rollouts, means: Tensor, std: Tensor) -> Tensor:
        """Mean KL per latent element between the policy's steps and the reference's: Gaussians of one spread."""
        with torch.no_grad(), backbone.weights("reference"):
            reference = log_probs_and_means(backbone, batch)[1]
        return ((means - reference).square().flatten(2).mean(2) / (2 * std.square())).mean()


Method = DDPO
