"""What a table of scores says: mean with interval, spread, best and worst, for each reward. Pure functions of rows.

The interval is about other images of this kind. Its unit is what was drawn independently: the prompt where images have
prompts of their own, else the image (by content); images of one prompt are no independent witnesses. Mean of all rows
+- t x the cluster-robust standard error (Liang and Zeger), cut at the reward's bounds. May import: types.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from scipy import stats


@dataclass
class Column:
    """All rows of one reward: 16 bytes each."""

    scores: array[float] = field(default_factory=lambda: array("d"))
    images: array[int] = field(default_factory=lambda: array("l"))
    """number of the row's image"""
    prompts: array[int] = field(default_factory=lambda: array("l"))


@dataclass(frozen=True)
class Extreme:
    """A row that is among the best, or the worst, or stands for those between."""

    image: str
    sha256: str
    prompt: str | None
    score: float
    place: int
    """in the order from best to worst, from 0"""


@dataclass
class Summary:
    """Filled with ``add``, then asked."""

    columns: dict[str, Column] = field(default_factory=dict)
    """label -> rows; the label is the reward's name, with its model where that alone is not one reward"""
    images: list[tuple[str, str]] = field(default_factory=list)
    """name, sha256"""
    prompts: list[str | None] = field(default_factory=list)
    rows: int = 0
    _image: dict[tuple[str, str], int] = field(default_factory=dict)
    _prompt: dict[str | None, int] = field(default_factory=dict)

    def add(self, table: pa.Table, labels: Mapping[tuple[str, ...], str]) -> None:
        """Rows of the table; ``labels``: (reward, model, checkpoint_sha256) -> label."""
        names = ("image", "image_sha256", "prompt", "reward", "model", "checkpoint_sha256", "score")
        for image, sha256, prompt, reward, model, checkpoint, score in zip(
            *(table[name].to_pylist() for name in names), strict=True
        ):
            column = self.columns.setdefault(labels.get((reward, model, checkpoint or ""), reward), Column())
            column.scores.append(score)
            column.images.append(_number((image, sha256), self._image, self.images))
            column.prompts.append(_number(prompt, self._prompt, self.prompts))
            self.rows += 1

    @property
    def contents(self) -> int:
        """Distinct images by content."""
        return len({sha256 for _, sha256 in self.images})

    def of(self, label: str, bounds: tuple[float, float] = (-np.inf, np.inf)) -> dict[str, float | int | list[float]]:
        """n, mean, ci95, std, min, median and max of a reward's rows."""
        scores = np.asarray(self.columns[label].scores)
        mean = float(scores.mean())
        low, high = interval(scores, self._clusters(label))
        return {
            "n": len(scores), "mean": mean, "ci95": [max(low, bounds[0]), min(high, bounds[1])],
            "std": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0, "min": float(scores.min()),
            "median": float(np.median(scores)), "max": float(scores.max()),
        }  # fmt: skip

    def _clusters(self, label: str) -> np.ndarray:
        """The unit of each row: its prompt when every image has but one and there are several, else its image."""
        column = self.columns[label]
        prompts, images = np.asarray(column.prompts), np.asarray(column.images)
        own = len(np.unique(np.stack([images, prompts]), axis=1).T) == len(np.unique(images))
        if own and len(np.unique(prompts)) > 1:
            return prompts
        number: dict[str, int] = {}
        content = np.array([number.setdefault(sha256, len(number)) for _, sha256 in self.images])
        return content[images]

    def ranked(self, label: str, places: Iterable[int]) -> list[Extreme]:
        """Rows by their place in the order from best to worst; negative places count from the worst."""
        column = self.columns[label]
        order = np.argsort(-np.asarray(column.scores), kind="stable")
        count = len(order)
        known = dict.fromkeys(place % count for place in places if -count <= place < count)
        return [self._extreme(column, int(order[place]), place) for place in known]

    def _extreme(self, column: Column, row: int, place: int) -> Extreme:
        image, sha256 = self.images[column.images[row]]
        return Extreme(image, sha256, self.prompts[column.prompts[row]], column.scores[row], place)


def _number(value: object, known: dict, values: list) -> int:
    """The number of a value, a new one for a new value."""
    number = known.setdefault(value, len(values))
    if number == len(values):
        values.append(value)
    return number


def interval(scores: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean of ``scores`` (n,), whose deviations add up within ``clusters`` (n,).

    With k clusters: variance = k / (k - 1) x sum over clusters of (sum of deviations)^2 / n^2, and Student's t with
    k - 1 degrees of freedom. With one cluster nothing is known: (-inf, inf).
    """
    _, codes = np.unique(clusters, return_inverse=True)
    sums = np.bincount(codes, weights=scores - scores.mean())
    count = len(sums)
    if count < 2:
        return -np.inf, np.inf
    error = float(np.sqrt(count / (count - 1) * (sums**2).sum())) / len(scores)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return float(scores.mean()) - half, float(scores.mean()) + half


def labels(rewards: Iterable[tuple[str, str, str]]) -> dict[tuple[str, ...], str]:
    """(reward, model, checkpoint_sha256) -> how it is called: its name, and its model where two share a name."""
    known = list(rewards)
    names = [reward for reward, _, _ in known]
    return {key: key[0] if names.count(key[0]) == 1 else f"{key[0]} ({key[1]})" for key in known}
