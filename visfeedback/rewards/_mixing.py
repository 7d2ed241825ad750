"""The arithmetic of several rewards for one picture: normalise, combine, disagree. Pure functions of tensors.

``scores`` is (..., R): R rewards in their native units. Nothing here knows where scores come from, so a mix of rewards
(``mix.py``) and online training use the same functions. May import: nothing of the package but plugins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Normalisation = Literal["none", "zscore", "minmax", "rank"]
TINY = 1e-12
"""Variances and spans below this are none: such scores carry no information and become 0."""


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (of the population) and bounds of each reward: (R,), or (N, R) for each row's group."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Running:
    """What was seen of R rewards so far, over the scores of many prompts; frozen by no longer updating it."""

    count: int
    mean: Tensor  # (R,), float64
    squares: Tensor  # (R,), float64: sum of squared deviations from the mean
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, scores: Tensor) -> Running:
        """From (N, R), N at least 1."""
        values = scores.detach().double()
        mean = values.mean(0)
        return cls(len(values), mean, (values - mean).square().sum(0), values.amin(0), values.amax(0))

    def updated(self, scores: Tensor) -> Running:
        """With (N, R) more, as if all had come at once (Chan, Golub and LeVeque 1979)."""
        new = Running.of(scores.to(self.mean.device))
        count, gap = self.count + new.count, new.mean - self.mean
        return Running(
            count,
            self.mean + gap * new.count / count,
            self.squares + new.squares + gap.square() * (self.count * new.count / count),
            torch.minimum(self.low, new.low),
            torch.maximum(self.high, new.high),
        )

    @property
    def spread(self) -> Spread:
        """(R,) each, float32."""
        std = (self.squares / self.count).sqrt()
        return Spread(self.mean.float(), std.float(), self.low.float(), self.high.float())


def group_spread(scores: Tensor, groups: Tensor) -> Spread:
    """Spread of each row's own group: scores (N, R), group ids (N,) of any integers -> (N, R) each, no gradient.

    Computed in float64, so that a group of equal scores has the deviation 0 and not some rounding.
    """
    values = scores.detach().double()
    names, member = groups.unique(return_inverse=True)
    index = member[:, None].expand_as(values)

    def reduced(part: Tensor, how: Literal["mean", "amin", "amax"]) -> Tensor:
        empty = part.new_zeros(len(names), part.shape[1])
        return empty.scatter_reduce(0, index, part, how, include_self=False)[member]

    mean = reduced(values, "mean")
    std = reduced((values - mean).square(), "mean").sqrt()
    low, high = reduced(values, "amin"), reduced(values, "amax")
    return Spread(mean.to(scores), std.to(scores), low.to(scores), high.to(scores))


def rank(scores: Tensor, groups: Tensor) -> Tensor:
    """(N, R) -> share of the others of its group that a row beats, in [0, 1]; a tie is half a win. No gradient.

    A row that is alone in its group gets 1/2.
    """
    ranks = torch.full_like(scores, 0.5, requires_grad=False)
    for name in groups.unique():
        rows = (groups == name).nonzero()[:, 0]
        own = scores.detach()[rows]
        beaten = (own[:, None] > own[None]).to(own.dtype) + (own[:, None] == own[None]).to(own.dtype) / 2
        if len(rows) > 1:
            ranks[rows] = (beaten.sum(1) - 0.5) / (len(rows) - 1)  # a row ties with itself
    return ranks


def normalise(
    scores: Tensor, how: Sequence[Normalisation], spread: Spread | None = None, groups: Tensor | None = None
) -> Tensor:
    """(..., R) in native units -> (..., R) that can be added.

    ``none`` as they are; ``zscore`` (s - mean) / std; ``minmax`` (s - low) / (high - low), not cut at 0 and 1, so that
    the gradient goes on; ``rank`` within the group. ``spread`` holds for all, (R,), or per row, (N, R), for example
    ``group_spread(scores, groups)``; ``groups`` (N,) is for ``rank``. Where the spread is zero the result is 0.
    Raises ValueError when a normalisation lacks what it needs.
    """
    ranked = None
    if "rank" in how:
        if groups is None:
            raise ValueError("rank is within groups; give the group of each row")
        ranked = rank(scores, groups)
    columns: list[Tensor] = []
    for r, kind in enumerate(how):
        if kind == "none":
            columns.append(scores[..., r])
        elif kind == "rank" and ranked is not None:
            columns.append(ranked[..., r])
        elif spread is None:
            raise ValueError(f"{kind} needs a spread")
        elif kind == "zscore":
            columns.append(_over(scores[..., r] - spread.mean[..., r], spread.std[..., r]))
        else:
            columns.append(_over(scores[..., r] - spread.low[..., r], spread.high[..., r] - spread.low[..., r]))
    return torch.stack(columns, dim=-1)


def combine(normalised: Tensor, weights: Tensor, pessimism: float = 0.0) -> Tensor:
    """(..., R) and (R,) -> (...): sum of w s, minus ``pessimism`` * (sum of |w|) * ``uncertainty``.

    With weights that add up to 1 that is the conservative ensemble: mean minus k standard deviations.
    """
    total = (normalised * weights).sum(-1)
    return total - pessimism * weights.abs().sum() * uncertainty(normalised, weights) if pessimism else total


def uncertainty(normalised: Tensor, weights: Tensor) -> Tensor:
    """How much the rewards disagree: (..., R) and (R,) -> (...), their weighted standard deviation.

    A reward with a negative weight votes with its sign turned; one with weight 0 has no vote.
    """
    votes, share = normalised * weights.sign(), weights.abs() / weights.abs().sum()
    mean = (votes * share).sum(-1, keepdim=True)
    return _root(((votes - mean).square() * share).sum(-1))


def _root(variance: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0, not infinite."""
    return torch.where(variance > TINY, variance.clamp_min(TINY).sqrt(), torch.zeros_like(variance))


def _over(values: Tensor, spread: Tensor) -> Tensor:
    return torch.where(spread > TINY, values / spread.clamp_min(TINY), torch.zeros_like(values))
