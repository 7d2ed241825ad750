"""How far judges agree beyond chance: percent, Cohen's kappa, Fleiss' kappa, Krippendorff's alpha.

Cohen 1960; Fleiss 1971; Krippendorff 2011 ("Computing Krippendorff's alpha-reliability"). Values are category numbers
0 .. K-1, -1 is missing. 1 is perfect, 0 is chance, below 0 is worse than chance; None where it is not defined, as when
all said the same or nobody judged anything twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from visfeedback.types.records import Feedback

Table = NDArray[np.int64]
ANSWERS = {"first": 0, "tie": 1, "second": 2, "both_bad": 3}


def percent(ratings: ArrayLike) -> float | None:
    """(items, judges) -> share of pairs of judgements of one item that are equal."""
    counts = _counts(ratings)
    n = counts.sum(1)
    pairs = (n * (n - 1)).sum()
    return float((counts * (counts - 1)).sum() / pairs) if pairs else None


def cohen(one: ArrayLike, other: ArrayLike) -> float | None:
    """Two judges, (items,) each; items that one of them left out do not count."""
    a, b = np.asarray(one), np.asarray(other)
    both = (a >= 0) & (b >= 0)
    a, b = a[both], b[both]
    if not len(a):
        return None
    k = int(max(a.max(), b.max())) + 1
    chance = float((np.bincount(a, minlength=k) * np.bincount(b, minlength=k)).sum() / len(a) ** 2)
    return float((np.mean(a == b) - chance) / (1 - chance)) if chance < 1 else None


def fleiss(counts: ArrayLike) -> float | None:
    """(items, categories) how often each item was put into each category, equally often judged.

    Raises ValueError where the items were judged unequally often: alpha is for that.
    """
    table = np.asarray(counts, dtype=float)
    n = table.sum(1)
    if not len(table) or n[0] < 2:
        return None
    if (n != n[0]).any():
        raise ValueError("Fleiss' kappa needs the same number of judgements for each item; use alpha")
    seen = float(((table * (table - 1)).sum(1) / (n * (n - 1))).mean())
    chance = float(((table.sum(0) / table.sum()) ** 2).sum())
    return (seen - chance) / (1 - chance) if chance < 1 else None


def alpha(ratings: ArrayLike, level: Literal["nominal", "ordinal"] = "nominal") -> float | None:
    """(items, judges) -> Krippendorff's alpha; any number of judgements for each item."""
    counts = _counts(ratings)
    return alpha_of_counts(counts, level)


def alpha_of_counts(counts: ArrayLike, level: Literal["nominal", "ordinal"] = "nominal") -> float | None:
    """(items, categories) -> alpha. Coincidences o_ck = sum over items n_c (n_k - [c=k]) / (n - 1)."""
    table = np.asarray(counts, dtype=float)
    table = table[table.sum(1) > 1]
    if not len(table):
        return None
    weighted = table / (table.sum(1, keepdims=True) - 1)
    seen = weighted.T @ table - np.diag(weighted.sum(0))
    total = seen.sum(0)  # n_c
    n = total.sum()
    distance = _distance(total, level)
    expected = (np.outer(total, total) * distance).sum() / (n - 1)
    return float(1 - (seen * distance).sum() / expected) if expected else None


def _distance(total: NDArray[np.float64], level: str) -> NDArray[np.float64]:
    """Squared distances between categories; ordinal: the judgements that lie between, ends counted half."""
    k = len(total)
    if level == "nominal":
        return 1.0 - np.eye(k)
    upto = np.cumsum(total)
    low, high = np.minimum.outer(np.arange(k), np.arange(k)), np.maximum.outer(np.arange(k), np.arange(k))
    between = upto[high] - np.where(low > 0, upto[low - 1], 0) - (total[low] + total[high]) / 2
    return np.where(low == high, 0.0, between**2)


def _counts(ratings: ArrayLike) -> Table:
    """(items, judges) with -1 for missing -> (items, categories)."""
    table = np.atleast_2d(np.asarray(ratings, dtype=np.int64))
    k = int(table.max(initial=-1)) + 1
    counts = np.zeros((len(table), max(k, 1)), dtype=np.int64)
    rows, columns = np.nonzero(table >= 0)
    np.add.at(counts, (rows, table[rows, columns]), 1)
    return counts


# from feedback


class Answers:
    """What each judge said of each pair first, collected in one pass: `add` records, then ask."""

    def __init__(self, ties: bool = True) -> None:
        self.ties = ties  # False: only decided answers count
        self.said: dict[tuple[str, str, str, str], dict[str, int]] = defaultdict(dict)

    def add(self, record: Feedback) -> None:
        answer = answer_of(record)
        if answer is None or record.gold or (not self.ties and answer in (1, 3)):
            return
        a, b = sorted(record.sample_ids)
        self.said[record.prompt_id, record.criterion, a, b].setdefault(record.judge, answer)

    def summary(self) -> dict[str, float | int | None]:
        """Items judged by two or more; percent; alpha nominal and ordinal (first < tie < second); mean Cohen."""
        several = [said for said in self.said.values() if len(said) > 1]
        counts = np.zeros((len(several), len(ANSWERS)), dtype=np.int64)
        for i, said in enumerate(several):
            for answer in said.values():
                counts[i, answer] += 1
        in_order = counts[:, :3] + np.array([0, 1, 0]) * counts[:, 3:]  # both bad is a tie
        pairs = (counts.sum(1) * (counts.sum(1) - 1)).sum()
        return {
            "items": len(several),
            "judgements": int(counts.sum()),
            "percent": float((counts * (counts - 1)).sum() / pairs) if pairs else None,
            "alpha": alpha_of_counts(counts),
            "alpha_ordinal": alpha_of_counts(in_order, "ordinal"),
            "fleiss": fleiss(counts) if len(several) and (counts.sum(1) == counts.sum(1)[0]).all() else None,
            "cohen_mean": _mean_cohen(several),
        }


def answer_of(record: Feedback) -> int | None:
    """The answer to a pair as a category that does not depend on which image was called a; None for no answer."""
    if record.kind != "pair" or record.choice in (None, "skip", "flag"):
        return None
    if record.choice in ("tie", "both_bad"):
        return ANSWERS[record.choice]
    winner = record.sample_ids[0 if record.choice == "a" else 1]
    return ANSWERS["first" if winner == min(record.sample_ids) else "second"]


def _mean_cohen(items: Iterable[dict[str, int]]) -> float | None:
    """The mean over pairs of judges, weighted by the items that both judged."""
    shared: defaultdict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for said in items:
        for one, other in combinations(sorted(said), 2):
            shared[one, other].append((said[one], said[other]))
    found = [
        (kappa, len(pairs)) for pairs in shared.values() if (kappa := cohen(*zip(*pairs, strict=True))) is not None
    ]
    return sum(kappa * n for kappa, n in found) / sum(n for _, n in found) if found else None
