"""Reward-weighted fine-tuning: images are learned as in pre-training, good ones more than bad ones.

Two of its kind, chosen by ``weighting``:

    reward    w = max(r, 0): Lee et al., "Aligning Text-to-Image Models using Human Feedback" (2023, arXiv 2302.12192),
              where r in [0, 1] was fitted to good and bad labels;
    softmax   w = N exp(r / temperature) / sum exp(r / temperature): RWR as in Black et al. 2023 (DDPO) and its authors'
              code, over the whole set, each prompt's images or a batch;
    sparse    the same code's thresholded variant: the best ``keep`` of the images count equally, the others nothing.

    loss = mean(w L(x)) + beta mean(L(real)),   L(x) = mean over C,h,w of (pred - target)^2 at one (noise, t)

Images of weight 0 are never shown, so the mean is one over the K of N images that are left. With ``reward`` w is
therefore max(r, 0) K / N, and w L(x) averages what it would over all N: a score that falls to 0 changes the loss no
more than one that nearly does, and beta means the same whatever the scores are.

The second term of Lee et al., the likelihood of pre-training data, keeps the model near images that are right: it is
there when the batch brings real images (`data.real`). The set is fixed or drawn anew in rounds: whoever makes the
batches calls ``weigh`` once over all images of a round, leaves out those of weight 0, and passes over a round without
others.
Left out: classifier-free guidance inside the loss (an option of the DDPO authors' code).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from visfeedback.methods import _weights
from visfeedback.methods._likelihood import errors, numbers
from visfeedback.types.batches import Scored
from visfeedback.types.protocols import Backbone, Context
from visfeedback.types.records import Frozen


class RWR(Frozen):
    """Knobs of reward-weighted fine-tuning."""

    eats: ClassVar[Literal["scored"]] = "scored"

    weighting: Literal["reward", "softmax", "sparse"] = "softmax"
    """`reward`: the score itself, cut at 0 (Lee et al.); `softmax`: exp(score / temperature); `sparse`: the best count
    equally, the others nothing"""
    over: Literal["set", "prompt", "batch"] = "set"
    """what weights are normalised over: all images of a round, each prompt's, or those of one batch. With `prompt` an
    easy prompt's images do not outweigh a hard one's"""
    temperature: float = Field(default=0.2, gt=0)
    """softmax: in the units of the score; small = only the best count. The DDPO authors' tau 5 is 0.2 here"""
    keep: float = Field(default=0.2, gt=0, le=1)
    """sparse: share of images that count"""
    beta: float = Field(default=1.0, ge=0)
    """weight of the likelihood of real images; without `data.real` there is no such term"""

    @property
    def least_group(self) -> int:
        """Images of a prompt without which there is nothing to compare."""
        return 2 if self.over == "prompt" and self.compares else 1

    @property
    def compares(self) -> bool:
        """Whether equal scores teach nothing: `reward` takes each one by itself."""
        return self.weighting != "reward"

    def kept_share(self, per_prompt: int) -> float:
        """Share of a round's images that is learned; `reward` and `softmax` may leave out some more."""
        if self.weighting != "sparse" or self._per_batch:
            return 1.0
        return _weights.top_count(per_prompt, self.keep) / per_prompt if self.over == "prompt" else self.keep

    def weigh(self, scores: Tensor, group: Tensor, prompts: Sequence[str], state: dict[str, Any]) -> Tensor:
        """(N,) scores of all images of a round -> (N,) weights, float32; logs how many images they amount to.

        ``over = "batch"`` weighs in the loss, so here all are 1. Raises InputError for scores that are no numbers, and
        NothingToLearn when all are alike where they would be compared.
        """
        weights = self._whole(_weights.checked(scores, len(group)), group)
        state["metrics"] = {
            "effective_images": _weights.effective_size(weights),
            "effective_share": _weights.effective_size(weights) / len(weights),
            "images_holding_90": float(_weights.holding(weights)),
        }
        return weights

    def loss(self, backbone: Backbone, batch: Scored, ctx: Context) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of a batch."""
        weights = self._in_batch(batch) if self._per_batch else batch.weight.float()
        own, real = errors(backbone, batch, self.beta > 0)
        loss = (weights * own).mean()
        metrics = {"score": batch.scores.mean(), "error": own.mean(), "weight": weights.mean()}
        if real is not None:
            loss = loss + self.beta * real.mean()
            metrics["error_real"] = real.mean()
        return loss, numbers(metrics)

    @property
    def _per_batch(self) -> bool:
        return self.over == "batch" and self.compares

    def _whole(self, scores: Tensor, group: Tensor) -> Tensor:
        if self.weighting == "reward":
            return _clamped(scores)
        over = "prompt" if self.over == "prompt" else "set"
        _weights.varied(scores, group, over)
        return _weights.renormalised(
            torch.ones_like(scores) if self._per_batch else self._compared(scores, group, over)
        )

    def _in_batch(self, batch: Scored) -> Tensor:
        """(B,) weights of a batch by itself."""
        return self._compared(batch.scores.double(), batch.group, "set").to(batch.scores.device).float()

    def _compared(self, scores: Tensor, group: Tensor, over: _weights.Over) -> Tensor:
        if self.weighting == "sparse":
            return _weights.top(scores, group, self.keep, over)
        return _weights.softmax(scores, group, self.temperature, over)


def _clamped(scores: Tensor) -> Tensor:
    """(N,) float32: the scores that are above 0, times the share of such images. Raises NothingToLearn without any."""
    weights = scores.clamp_min(0).float()
    kept = weights > 0
    if not bool(kept.any()):
        raise _weights.NothingToLearn(
            f"no image has a score above 0 (highest {scores.max():g}), and method.weighting = reward takes scores as "
            "weights; fit a reward to labels, or choose --method.weighting softmax"
        )
    return weights * kept.float().mean()


Method = RWR
