"""From scores to weights of images: pure functions of tensors, no gradient.

``scores`` (N,) in native units, ``group`` (N,) of any integers: images of one prompt share one. Weights are at least 0
and average 1 over the images that are learned, so that a learning rate means the same whatever the weighting.
May import: nothing of the package but plugins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from visfeedback.plugins import InputError

Over = Literal["set", "prompt"]
"""What weights are normalised over: everything there is, or the images of each prompt."""


class NothingToLearn(InputError):
    """These scores prefer no image. Others of the same reward may: a round of fresh images is then passed over."""


def checked(scores: Tensor, count: int) -> Tensor:
    """float64 scores. Raises InputError when they are not ``count`` numbers."""
    if scores.shape != (count,):
        raise InputError(
            f"the reward gave scores of shape {tuple(scores.shape)} for {count} images; expected ({count},)"
        )
    if not bool(torch.isfinite(scores).all()):
        bad = int((~torch.isfinite(scores)).sum())
        raise InputError(
            f"the reward gave {bad} of {count} images a score that is no number; try another --reward.name"
        )
    return scores.detach().double()


def varied(scores: Tensor, group: Tensor, over: Over) -> None:
    """Raises NothingToLearn when no score differs from another it would be compared with, and InputError when there is
    none that it could differ from."""
    if len(scores) < 2:
        raise InputError(f"{len(scores)} scored images; weights compare images, expected 2 or more")
    if over == "prompt" and int(_sizes(group)[1].max()) < 2:
        raise InputError("every prompt has a single image; weights within a prompt need --rollout.per-prompt 2 or more")
    centred = scores - (group_mean(scores, group) if over == "prompt" else scores.mean())
    if not bool((centred.abs() > 1e-12 * scores.abs().clamp_min(1)).any()):
        where = " within its prompt" if over == "prompt" else ""
        raise NothingToLearn(f"the reward gives every image{where} the same score ({scores[0]:g}); it teaches nothing")


def softmax(scores: Tensor, group: Tensor, temperature: float, over: Over) -> Tensor:
    """(N,) exp(score / temperature), normalised to mean 1 over the whole set or over each group."""
    logits = scores.detach().double() / temperature
    if over == "set":
        return torch.softmax(logits, 0) * len(logits)
    member, sizes = _sizes(group)
    top = logits.new_zeros(len(sizes)).scatter_reduce(0, member, logits, "amax", include_self=False)
    raised = (logits - top[member]).exp()
    totals = logits.new_zeros(len(sizes)).index_add(0, member, raised)
    return raised / totals[member] * sizes[member]


def renormalised(weights: Tensor) -> Tensor:
    """(N,) float32 weights that average 1 over those that are not 0. What float32 cannot hold becomes 0: such an image
    leaves the set, and the others would weigh as many times more as there are images for each of them."""
    kept = weights >= torch.finfo(torch.float32).tiny
    return torch.where(kept, weights * (kept.sum() / weights[kept].sum()), 0.0).float()


def top(scores: Tensor, group: Tensor, share: float, over: Over) -> Tensor:
    """(N,) 1 for the best ``share`` of the set or of each group (at least one image of it), else 0."""
    if over == "set":
        group = torch.zeros_like(group)
    return _best(scores, group, lambda size: top_count(size, share))


def top_count(size: int, share: float) -> int:
    """How many of a group that ``top`` keeps."""
    return max(1, round(share * size))


def best(scores: Tensor, group: Tensor, count: int) -> Tensor:
    """(N,) 1 for the ``count`` best images of each group, else 0."""
    return _best(scores, group, lambda size: count)


def _best(scores: Tensor, group: Tensor, count: Callable[[int], int]) -> Tensor:
    """Ties at the edge are broken by position, so that as many are kept whatever the scores are."""
    kept = torch.zeros_like(scores)
    for name in group.unique():
        rows = (group == name).nonzero()[:, 0]
        kept[rows[scores[rows].argsort(descending=True, stable=True)[: count(len(rows))]]] = 1
    return kept


def effective_size(weights: Tensor) -> float:
    """Kish's effective sample size, (sum w)^2 / sum w^2: N for equal weights, 1 when one image has them all."""
    total = weights.double().sum()
    return float(total**2 / weights.double().square().sum()) if total > 0 else 0.0


def holding(weights: Tensor, share: float = 0.9) -> int:
    """How many images hold this share of the weight: the diagnostic that the RWR code of DDPO's authors prints."""
    ordered = weights.double().sort(descending=True).values.cumsum(0)
    return int((ordered < share * ordered[-1]).sum()) + 1


def group_mean(scores: Tensor, group: Tensor) -> Tensor:
    """(N,) the mean of each row's own group."""
    member, sizes = _sizes(group)
    return (scores.new_zeros(len(sizes)).index_add(0, member, scores) / sizes)[member]


def _sizes(group: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) which group a row is in, counted from 0, and the number of rows of each."""
    _, member, sizes = group.unique(return_inverse=True, return_counts=True)
    return member, sizes
