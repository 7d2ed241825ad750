"""From judgements of single images to numbers a method can weigh them by: likes, ratings and words of praise.

- A like is 1, a dislike 0; a rating is 1 from `good_from` on, else 0; "both bad" is 0 for both images of the pair. That
  is the good / bad label of Lee et al. 2023 (arXiv 2302.12192). Comparisons say nothing about one image alone.
- Words: LiFT (Wang et al. 2024, arXiv 2412.04814) asks for Good, Normal or Bad on several dimensions and weighs an
  image by the mean of .9, .2 and .05. They stand in ``Feedback.extra["grades"]``: {"dimension": "Good", ...} or a list.

What several judges said of one image is averaged. May import: types.records.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from visfeedback.plugins import InputError, nearest
from visfeedback.types.records import Feedback

VERBAL: dict[str, float] = {"good": 0.9, "normal": 0.2, "bad": 0.05}
"""LiFT's weights of its critic's words."""
GRADES = "grades"
"""The key of ``Feedback.extra`` that holds words by dimension."""


class Label(NamedTuple):
    """What one image is worth for its prompt."""

    sample_id: str
    prompt_id: str
    value: float  # in [0, 1] for labels; a mean of the table's weights for words
    votes: int  # judgements averaged


def verbal_weight(grades: Mapping[str, str] | Iterable[str], table: Mapping[str, float] = VERBAL) -> float:
    """Mean weight of the words, whatever their case. Raises InputError for no words and for one not in the table."""
    words = list(grades.values() if isinstance(grades, Mapping) else grades)
    if not words:
        raise InputError(f"no grade to weigh; expected words out of {', '.join(table)}")
    known = {word.lower(): weight for word, weight in table.items()}
    weights: list[float] = []
    for word in words:
        plain = str(word).strip(" .").lower()
        if plain not in known:
            raise InputError(f"no grade {word!r}{nearest(plain, known)}")
        weights.append(known[plain])
    return math.fsum(weights) / len(weights)


def labels_from_feedback(
    feedback: Iterable[Feedback], *, criterion: str | None = None, good_from: float = 3.0,
    table: Mapping[str, float] = VERBAL,
) -> tuple[list[Label], dict[str, int]]:  # fmt: skip
    """One label for each image and prompt that was judged by itself, sorted; and how many records say nothing, by why.

    ``criterion``: only this one; None takes all together. ``good_from``: least rating that is good. Tombstones are
    obeyed wherever they stand; gold items test judges and are left out.
    Raises InputError for a grade in words that the table does not know.
    """
    records = list(feedback)
    retracted = {record.retracts for record in records if record.kind == "tombstone"}
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    dropped = Counter[str]()
    for record in records:
        if record.kind == "tombstone":
            continue
        reason = _reason_to_drop(record, retracted, criterion)
        if reason:
            dropped[reason] += 1
            continue
        for sample, value in _values(record, good_from, table):
            values[sample, record.prompt_id].append(value)
    labels = [Label(*key, math.fsum(found) / len(found), len(found)) for key, found in sorted(values.items())]
    return labels, dict(sorted(dropped.items()))


def _reason_to_drop(record: Feedback, retracted: set[str | None], criterion: str | None) -> str:
    if record.id in retracted:
        return "retracted"
    if record.gold:
        return "gold"
    if record.choice in ("skip", "flag"):
        return record.choice
    if criterion is not None and record.criterion != criterion:
        return "criterion"
    if record.kind in ("like", "rating") or record.choice == "both_bad" or GRADES in record.extra:
        return ""
    return "comparison" if record.kind in ("pair", "ranking", "best") else record.kind


def _values(record: Feedback, good_from: float, table: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """(image, value) of everything that the record says about images by themselves."""
    if GRADES in record.extra:
        weight = verbal_weight(record.extra[GRADES], table)
        yield from ((sample, weight) for sample in record.sample_ids)
    elif record.choice == "both_bad":
        yield from ((sample, 0.0) for sample in record.sample_ids)
    else:
        for sample, value in zip(record.sample_ids, record.values, strict=True):
            yield sample, float(value > 0 if record.kind == "like" else value >= good_from)
