"""Learning and measuring from comparisons: losses, a temperature, accuracy, calibration. Pure functions of tensors.

``gap`` (B,) is reward of a minus reward of b; ``share`` (B,) in [0, 1] is how much of the preference goes to a: 1 or 0,
anything between for soft labels, .5 for a tie. ``weight`` (B,) is how much a comparison counts.

- Bradley-Terry with soft labels: P(a) = s(gap), loss -share log P(a) - (1 - share) log P(b), least for a tie at gap 0.
- Davidson (1970): P(a) = e^(gap/2) / Z, P(b) = e^(-gap/2) / Z, P(tie) = v / Z, with Z the sum of the three numerators
  and v learned; a tie's loss is -log P(tie). A share between counts in parts: .7 is .4 of a win of a and .6 of a tie.
  Given that there is a winner, P(a) is s(gap) as before.

May import: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COLDEST, HOTTEST = 1e-4, 1e4
"""Temperatures outside are cut: a reward without information asks for infinity, one that is never wrong for zero."""
Z95 = 1.959963984540054
BINS = 10


def bradley_terry(gap: Tensor, share: Tensor, weight: Tensor) -> Tensor:
    """Mean loss, nats per comparison."""
    return _mean(F.binary_cross_entropy_with_logits(gap, share, reduction="none"), weight)


def davidson(gap: Tensor, share: Tensor, weight: Tensor, log_tie: Tensor) -> Tensor:
    """Mean loss, nats per comparison; ``log_tie`` is log v, a scalar."""
    total = torch.stack([gap / 2, -gap / 2, log_tie.expand_as(gap)]).logsumexp(0)
    won = (2 * share - 1).abs()
    return _mean(won * (total - (share - 0.5).sign() * gap / 2) + (1 - won) * (total - log_tie), weight)


def temperature(gap: Tensor, share: Tensor, weight: Tensor) -> float:
    """T that makes s(gap / T) fit best (least Bradley-Terry loss), between 1e-4 and 1e4.

    The loss is convex in 1 / T: its derivative, the weighted sum of (s(gap / T) - share) gap, is brought to 0 by
    bisection.
    """
    gap, share, weight = gap.double(), share.double(), weight.double()
    cold, hot = COLDEST, HOTTEST
    for _ in range(60):
        middle = (cold * hot) ** 0.5
        slope = (weight * (torch.sigmoid(gap / middle) - share) * gap).sum()
        cold, hot = (middle, hot) if slope > 0 else (cold, middle)  # too sure of itself: hotter
    return (cold * hot) ** 0.5


@dataclass(frozen=True)
class Share:
    """A share of comparisons with its 95% interval."""

    value: float
    low: float
    high: float
    count: int


def accuracy(gap: Tensor, share: Tensor, prompts: Sequence[str]) -> Share | None:
    """How often the reward picks the side that got more of the preference; ties are left out, a gap of 0 is half right.

    The interval is Wilson's with the number of comparisons divided by the design effect: comparisons of one prompt are
    not independent witnesses. None when all are ties.
    """
    decided = share != 0.5
    if not decided.any():
        return None
    right = ((gap[decided].sign() * (share[decided] - 0.5).sign()) / 2 + 0.5).double()
    names = [name for name, kept in zip(prompts, decided.tolist(), strict=True) if kept]
    value = float(right.mean())
    low, high = wilson(value, len(right) / design_effect(right, names))
    return Share(value, low, high, len(right))


def design_effect(values: Tensor, clusters: Sequence[str]) -> float:
    """By how much clusters widen the variance of a mean: observed over independent, from 1 to the cluster size."""
    order = {name: n for n, name in enumerate(dict.fromkeys(clusters))}
    member = torch.tensor([order[name] for name in clusters])
    counts = torch.bincount(member).double()
    size, mean = len(values) / len(order), values.mean()
    alone = mean * (1 - mean) / len(values)
    if len(order) < 2 or alone <= 0:
        return size
    sums = torch.zeros(len(order), dtype=torch.float64).index_add(0, member, values - mean)
    together = sums.square().sum() * len(order) / (len(order) - 1) / counts.sum() ** 2
    return float((together / alone).clamp(1.0, max(size, 1.0)))


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share seen in ``count`` independent trials, which need not be whole."""
    spread = Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 * (share * (1 - share) / count + spread / (4 * count)) ** 0.5 / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def calibration_error(gap: Tensor, share: Tensor) -> float:
    """Expected calibration error: mean over 10 equal bins of confidence, weighted by their size, of
    |mean confidence - mean share of the preference that its choice got|. Ties count with share .5. 0 for no data.
    """
    confidence = torch.sigmoid(gap.abs()).double()
    got = torch.where(gap >= 0, share, 1 - share).double()
    place = ((confidence - 0.5) * 2 * BINS).long().clamp(0, BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, confidence - got)
    return float(gaps.abs().sum() / max(len(gap), 1))


def _mean(losses: Tensor, weight: Tensor) -> Tensor:
    return (losses * weight).sum() / weight.sum()
