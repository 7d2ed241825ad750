"""Counts, and the two numbers that show how people judged: side bias and speed."""

from __future__ import annotations

from array import array
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from visfeedback.store.tables import feedback, images, prompts, samples
from visfeedback.types.records import Feedback

if TYPE_CHECKING:
    from visfeedback.store.core import Store


def stats(store: Store) -> dict[str, Any]:
    """What the store holds; retracted feedback counts only under ``retracted``.

    ``left``: share of decided pairs that the image on the left won, with its 95% interval and n; .5 is unbiased.
    ``ties``: share of answered pairs (skips and flags aside). ``median_seconds``: per judgement.
    """
    counts = _table_sizes(store)
    by = {name: Counter[str]() for name in ("kind", "judge", "criterion", "choice")}
    left = decided = 0
    seconds = array("d")
    for record in store.feedback():
        by["kind"][record.kind] += 1
        by["judge"][record.judge] += 1
        by["criterion"][record.criterion] += 1
        if record.choice:
            by["choice"][record.choice] += 1
        if (side := winning_side(record)) is not None:
            decided += 1
            left += side == 0
        if record.seconds is not None:
            seconds.append(record.seconds)
    return counts | {
        "feedback": by["kind"].total(),
        **{f"by_{name}": dict(sorted(counter.items())) for name, counter in by.items()},
        "ties": _tie_share(by["choice"]),
        "left": {"share": left / decided if decided else None, "ci95": wilson(left, decided), "n": decided},
        "median_seconds": median(seconds) if seconds else None,
    }


def _table_sizes(store: Store) -> dict[str, int]:
    dead = feedback.c.kind == "tombstone"
    with store.reading() as connection:
        counts = {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in (prompts, samples, images)
        }
        tombstones = connection.scalar(select(func.count()).where(dead)) or 0
        retracted = connection.scalar(select(func.count(func.distinct(feedback.c.retracts))).where(dead)) or 0
    return counts | {"tombstones": tombstones, "retracted": retracted}


def winning_side(record: Feedback) -> int | None:
    """The position (0 = left) of the preferred image of a decided pair whose sides are known, else None."""
    if record.kind != "pair" or record.choice not in ("a", "b") or not record.sides:
        return None
    return record.sides[0 if record.choice == "a" else 1]


def _tie_share(choices: Counter[str]) -> float | None:
    ties = choices["tie"] + choices["both_bad"]
    answered = ties + choices["a"] + choices["b"]
    return ties / answered if answered else None


def wilson(wins: int, n: int) -> list[float] | None:
    """95% interval [low, high] of a share (Wilson 1927), honest near 0 and 1 and for small n; None when n is 0."""
    from scipy.stats import binomtest  # half a second that only statistics need

    return list(binomtest(wins, n).proportion_ci(method="wilson")) if n else None
