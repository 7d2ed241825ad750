"""Means and intervals where the unit is the prompt: images of one prompt are not independent witnesses.

Pure functions of numpy arrays; every random draw comes from a seed. ``values[i]`` belongs to prompt ``clusters[i]``.
The bootstrap resamples prompts within their category (how many prompts a category has is a choice, not chance)
and averages the categories with equal weight; with one category that is the ordinary cluster bootstrap.
May import: types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
Z95 = 1.959963984540054
CELLS = 4_000_000
"""Most random indices drawn at once: 32 MB."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval, which is infinite where nothing is known about the spread."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> list[float] | None:
        """None when nothing is known."""
        return [self.low, self.high] if np.isfinite([self.low, self.high]).all() else None


def cluster_means(values: ArrayLike, clusters: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Mean of ``values`` within each cluster, (K,), and the clusters in order of first appearance."""
    numbers = np.asarray(values, dtype=float)
    order = list(dict.fromkeys(clusters))
    place = {name: index for index, name in enumerate(order)}
    index = np.array([place[name] for name in clusters], dtype=int)
    counts = np.bincount(index, minlength=len(order))
    return np.bincount(index, weights=numbers, minlength=len(order)) / counts, order


def bootstrap(
    values: ArrayLike,
    clusters: Sequence[str],
    strata: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Equal-weight mean over strata of the mean over clusters, with its percentile bootstrap 95% interval.

    values (N,), the cluster of each and, optionally, its stratum (a cluster lies in one stratum). Deviations are
    widened by sqrt(n / (n - 1)) per stratum of n clusters (Rao and Wu), without which small strata look too sure.
    Strata of one cluster, which show no spread, are resampled from each other (collapsed strata, Wolter 2007, ch. 2):
    what sets the strata apart counts as chance then, so this errs on the wide side. With fewer than two clusters the
    interval is infinite; otherwise it is cut at ``bounds``. Raises ValueError when there is nothing to average.
    """
    means, order = cluster_means(values, clusters)
    if not order:
        raise ValueError("nothing to average")
    of_cluster = dict(zip(clusters, strata or [""] * len(clusters), strict=True))
    labels = np.array([of_cluster[name] for name in order])
    groups = [means[labels == label] for label in dict.fromkeys(labels.tolist())]
    rng = np.random.default_rng(seed)
    value = float(np.mean([group.mean() for group in groups]))
    if len(order) < 2:
        return Estimate(value, -np.inf, np.inf)
    deviations = [_deviations(_pool(group, groups), len(group), resamples, rng) for group in groups]
    draws = value + np.mean(deviations, axis=0)
    low, high = np.clip(np.percentile(draws, [2.5, 97.5]), *bounds)
    return Estimate(value, float(low), float(high))


def _pool(group: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """What a stratum is resampled from: itself; a single cluster from all single ones, or, where it is the only one,
    together with the smallest other stratum."""
    if len(group) > 1:
        return group
    single = [other for other in groups if len(other) == 1]
    if len(single) == 1:
        single.append(min((other for other in groups if other is not group), key=len))
    return np.concatenate(single)


def _deviations(pool: np.ndarray, count: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples,) means of ``count`` draws from ``pool`` (n,) minus its mean, with the variance of an unbiased
    estimate."""
    size = len(pool)
    centred = (pool - pool.mean()) * np.sqrt(size / (size - 1))
    step = max(1, CELLS // count)
    parts = [
        centred[rng.integers(size, size=(min(step, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def rate(successes: ArrayLike, clusters: Sequence[str]) -> Estimate:
    """A share of 0/1 (or graded) values with a Wilson 95% interval that knows images of a prompt hang together.

    The count entering Wilson's formula is the number of values divided by the design effect: the variance of the mean
    as clusters show it over the variance if all values were independent, kept between 1 and the cluster size. Unlike
    the bootstrap this stays honest at 0% and 100%.
    """
    values = np.asarray(successes, dtype=float)
    means, _ = cluster_means(values, clusters)
    share, size = float(values.mean()), len(values) / len(means)
    alone = share * (1 - share) / len(values)
    together = float(means.var(ddof=1)) / len(means) if len(means) > 1 else alone * size
    effect = min(max(together / alone, 1.0), size) if alone > 0 else size
    return wilson(share, len(values) / effect)


def wilson(share: float, count: float) -> Estimate:
    """Wilson's score interval, 95%, for a share seen in ``count`` independent trials (need not be whole)."""
    spread = Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 * np.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return Estimate(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def spread(images: np.ndarray) -> float | None:
    """Mean RMS difference over all pairs of ``images`` (K, ...) in [0, 1]; None for fewer than two."""
    flat = images.reshape(len(images), -1).astype(float)
    if len(flat) < 2:
        return None
    left, right = np.triu_indices(len(flat), k=1)
    return float(np.sqrt(((flat[left] - flat[right]) ** 2).mean(axis=1)).mean())
