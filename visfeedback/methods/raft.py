"""RAFT, or best-of-N with fine-tuning: draw N images of each prompt, keep the best, learn them, and again.

Dong et al., "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment" (2023, arXiv 2304.06767):

    loss = mean over the kept images of L(x),   L(x) = mean over C,h,w of (pred - target)^2 at one (noise, t)

Best is best of its own prompt, so easy prompts do not crowd out hard ones. ``floor`` also asks for a least score: a
prompt of which no image is good enough then teaches nothing (the filter of DreamSync). Whoever makes the batches
calls ``weigh`` once over all images of a round, leaves out those of weight 0, and passes over a round without others.
Left out: the KL penalty inside the reward, which the paper also does without by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from visfeedback.methods import _weights
from visfeedback.methods._likelihood import errors, numbers
from visfeedback.plugins import InputError
from visfeedback.types.batches import Scored
from visfeedback.types.protocols import Backbone, Context
from visfeedback.types.records import Frozen


class RAFT(Frozen):
    """Knobs of filter-and-tune."""

    eats: ClassVar[Literal["scored"]] = "scored"

    best: int = Field(default=1, ge=1)
    """images of each prompt that are learned"""
    floor: float | None = None
    """least score, in the reward's own units, that an image must have to be learned; None asks for nothing"""
    distinct: bool = True
    """leave out prompts whose images all have the same score, for their best is chance; with a floor they stay"""
    beta: float = Field(default=0.0, ge=0)
    """weight of the likelihood of real images (`data.real`), which keeps the model near them; 0 = none"""

    @property
    def least_group(self) -> int:
        """Images of a prompt without which there is no best."""
        return self.best + 1 if self.floor is None else 1

    @property
    def compares(self) -> bool:
        """Whether equal scores teach nothing: with a floor each image is good enough or not by itself."""
        return self.floor is None

    def kept_share(self, per_prompt: int) -> float:
        """Share of a round's images that is learned: at most, for prompts of equals and a floor take from it."""
        return min(1.0, self.best / per_prompt)

    def weigh(self, scores: Tensor, group: Tensor, prompts: Sequence[str], state: dict[str, Any]) -> Tensor:
        """(N,) scores of all images of a round -> (N,) 1 for those that are learned, else 0; float32.

        Raises InputError for scores that are no numbers and groups without a choice, NothingToLearn when no image is
        left.
        """
        scores = _weights.checked(scores, len(group))
        self._check_choice(group)
        kept = _weights.best(scores, group, self.best) > 0
        if self.floor is not None:
            kept &= scores >= self.floor
            if not bool(kept.any()):
                raise _weights.NothingToLearn(
                    f"no image passes method.floor = {self.floor:g}, the best has {scores.max():g}; lower the floor, "
                    "or draw more: --rollout.per-prompt"
                )
        elif self.distinct:
            _weights.varied(scores, group, "prompt")
            kept &= ~_uniform(scores, group)
        state["metrics"] = {
            "kept_share": float(kept.double().mean()), "kept_score": float(scores[kept].mean()),
            "score_round": float(scores.mean()),
        }  # fmt: skip
        return kept.float()

    def loss(self, backbone: Backbone, batch: Scored, ctx: Context) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of a batch of kept images."""
        own, real = errors(backbone, batch, self.beta > 0)
        loss = (batch.weight.float() * own).mean()
        metrics = {"score": batch.scores.mean(), "error": own.mean()}
        if real is not None:
            loss = loss + self.beta * real.mean()
            metrics["error_real"] = real.mean()
        return loss, numbers(metrics)

    def _check_choice(self, group: Tensor) -> None:
        """Raises InputError when the best are simply all."""
        largest = int(group.unique(return_counts=True)[1].max())
        if largest <= self.best and self.floor is None:
            raise InputError(
                f"every prompt has {largest} image{'s' if largest > 1 else ''} at most and method.best = {self.best} "
                "keeps that many: there is no choice to learn from; draw more with --rollout.per-prompt"
            )


def _uniform(scores: Tensor, group: Tensor) -> Tensor:
    """(N,) whether all images of a row's group have one score; False for an image that is alone."""
    alike = torch.zeros_like(scores, dtype=torch.bool)
    for name in group.unique():
        rows = (group == name).nonzero()[:, 0]
        alike[rows] = len(rows) > 1 and bool((scores[rows] == scores[rows[0]]).all())
    return alike


Method = RAFT
