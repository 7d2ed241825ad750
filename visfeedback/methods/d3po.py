"""D3PO: denoising as a chain of decisions; the steps of preferred images become likelier than those of the others.

Paper: Yang et al., "Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model" (2023, arXiv
2311.13231), eq. 14, and the authors' released code. For two images i, j of a prompt at one step, with log-probabilities
l per latent element (mean) under policy and reference:

    log rho_i = clamp(l_i - lref_i, log(1 - clip), log(1 + clip))
    loss      = -[p logsigmoid(z) + (1 - p) logsigmoid(-z)],   z = beta (log rho_i - log rho_j)

p is the probability that i is better: 1 or 0 from a reward or a vote, in between when people disagree; ties are left
out. All pairs of a group of K images are learned together, each image evaluated once: the K(K-1)/2 pairs of the
released code cost K(K-1) evaluations. The loss is the mean over the pairs of a group, and then over groups, where one
of nothing but ties counts as 0: it does not matter how groups are split into calls. The reference's log-probabilities
are constants of a path; batches bring them, so no reference network runs here. With the published beta 0.1 and clip
0.1, |z| is below 0.02: the loss is a policy gradient with advantages of +1 and -1, cut where a step's ratio leaves
1 +- clip. With ``even_steps`` the log-ratios are divided as in `ddpo`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import log_probs, reach
from visfeedback.types.batches import Rollouts
from visfeedback.types.protocols import Backbone, Context
from visfeedback.types.records import Frozen


class D3PO(Frozen):
    """Knobs of D3PO."""

    eats: ClassVar[Literal["rollouts"]] = "rollouts"
    reads_reference: ClassVar[bool] = True
    whole_groups: ClassVar[bool] = True
    least_group: ClassVar[int] = 2

    beta: float = Field(default=0.1, gt=0)
    """strength of a preference; with the published 0.1 the loss is linear, above about 10 the sigmoid saturates"""
    clip: float = Field(default=0.1, gt=0, lt=1)
    """how far a step's ratio to the reference may leave 1 before it is not pushed further"""
    even_steps: bool = False
    """let every step push the prediction alike; else the least noisy ones of a path are learned most"""

    def weigh(self, scores: Tensor, group: Tensor, prompts: Sequence[str], state: dict[str, Any]) -> Tensor:
        """(N,) 1 for images of a prompt whose images differ in score, else 0: there is no preference among equals."""
        differs = torch.zeros_like(scores)
        for number in group.unique().tolist():
            rows = group == number
            differs[rows] = float(scores[rows].min() < scores[rows].max())
        state["metrics"] = {"groups_used": differs.mean().item()}
        return differs

    def loss(self, backbone: Backbone, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of whole groups: the mean over steps, pairs of which one image is better, and then groups."""
        if batch.reference_log_prob is None:
            raise InputError("d3po needs the reference's log-probabilities, and this batch brings none")
        ratio = log_probs(backbone, batch) - batch.reference_log_prob  # (B, T)
        if self.even_steps:
            ratio = ratio / reach(backbone.process, batch)
        first, second, probability = pairs(batch)
        logits = self.beta * (self.clamped(ratio)[first] - self.clamped(ratio)[second])  # (M, T)
        p = probability[:, None]
        losses = -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits))
        loss = (_shares(batch.group, first) * losses.mean(dim=1)).sum()
        return loss, self._metrics(ratio.detach(), logits.detach(), p)

    def clamped(self, ratio: Tensor) -> Tensor:
        """Log-ratios within log(1 - clip) ... log(1 + clip)."""
        return ratio.clamp(math.log1p(-self.clip), math.log1p(self.clip))

    def _metrics(self, ratio: Tensor, logits: Tensor, p: Tensor) -> dict[str, float]:
        right = ((logits * (2 * p - 1) > 0).float() + 0.5 * (logits == 0).float()).mean()
        outside = (ratio != self.clamped(ratio)).float().mean()
        known = {"implicit_accuracy": right, "clipped": outside, "log_ratio": ratio.abs().mean()}
        values = torch.stack(list(known.values())).nan_to_num(0.5).tolist()
        return dict(zip(known, values, strict=True)) | {"pairs": float(len(logits))}


def pairs(batch: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
    """(M,) rows i < j of all pairs within a group of which one is better, and P(i is better).

    From ``batch.better`` where people compared images, else from the scores.
    """
    i, j = torch.triu_indices(len(batch.group), len(batch.group), offset=1, device=batch.group.device)
    together = batch.group[i] == batch.group[j]
    i, j = i[together], j[together]
    if batch.better is None:
        probability = (batch.scores[i] > batch.scores[j]).float() + 0.5 * (batch.scores[i] == batch.scores[j]).float()
    else:
        probability = batch.better[i, _place(batch.group)[j]].float()
    known = probability.isfinite() & (probability != 0.5)
    return i[known], j[known], probability[known]


def _shares(group: Tensor, first: Tensor) -> Tensor:
    """(M,) what each pair counts: 1 / its group's pairs / groups. ``first`` (M,) is a row of each pair."""
    numbers = group.unique(return_inverse=True)[1]
    own = numbers[first]
    return 1 / (torch.bincount(own)[own] * (numbers.max() + 1))


def _place(group: Tensor) -> Tensor:
    """(B,) which image of its group a row is; groups stand together and are whole."""
    block, sizes = torch.unique_consecutive(group, return_inverse=True, return_counts=True)[1:]
    starts = sizes.cumsum(0) - sizes
    return torch.arange(len(group), device=group.device) - starts[block]


Method = D3PO
