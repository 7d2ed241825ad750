"""From feedback to preferences: who is better than whom, how surely, and what had to be left out.

Every judgement is first broken into comparisons of two images: a pair is one; a ranking or rating of n images is
n(n-1)/2; single ratings and likes are compared with the others that the same judge gave to the same prompt. Comparisons
of the same two images are then averaged: the probability is the mean share.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

from visfeedback.types.records import PAIR_VALUES, Feedback, Preference

_BALANCED = 1e-9  # mean shares this close to one half are ties


class _Key(NamedTuple):
    """Two images of one prompt; first < second."""

    prompt_id: str
    criterion: str
    first: str
    second: str


@dataclass(frozen=True)
class _Comparison:
    key: _Key
    share: float  # in [0, 1], how much of the preference goes to key.first
    feedback_ids: tuple[str, ...]


def pairs_from_feedback(
    feedback: Iterable[Feedback],
    *,
    criterion: str | None = None,
    ties: Literal["drop", "keep"] = "drop",
    weight: Literal["one", "votes"] = "one",
) -> tuple[list[Preference], dict[str, int]]:
    """Preferences, sorted so that the order of the input does not matter, and how much was dropped, by reason.

    ``criterion``: only this one; None keeps each criterion as preferences of its own. ``ties="keep"``: a pair whose
    mean share is one half becomes a preference with probability .5. ``weight="votes"``: number of comparisons averaged.
    Reasons count comparisons (whole records for retracted, skip, flag, gold, region, words and text): ``tie`` all
    judgements were ties, ``split`` judgements cancel out, ``same image``, ``alone`` a rating or like with nothing to
    compare it to, ``gold`` a test of the judge, ``criterion`` another criterion. Tombstones are obeyed wherever they
    stand.
    """
    records = list(feedback)
    dropped = Counter[str]()
    votes: defaultdict[_Key, list[_Comparison]] = defaultdict(list)
    for comparison in _comparisons(_standing(records, criterion, dropped), dropped):
        votes[comparison.key].append(comparison)
    preferences = []
    for key in sorted(votes):
        preference = _preference(key, votes[key], weight)
        if preference.probability == 0.5 and ties == "drop":
            reason = "tie" if all(vote.share == 0.5 for vote in votes[key]) else "split"
            dropped[reason] += len(votes[key])
        else:
            preferences.append(preference)
    return preferences, dict(sorted(dropped.items()))


def _standing(records: list[Feedback], criterion: str | None, dropped: Counter[str]) -> Iterator[Feedback]:
    """Records that say something about preference."""
    retracted = {record.retracts for record in records if record.kind == "tombstone"}
    for record in records:
        if record.kind == "tombstone":
            continue
        if reason := _reason_to_drop(record, retracted, criterion):
            dropped[reason] += 1
        else:
            yield record


def _reason_to_drop(record: Feedback, retracted: set[str | None], criterion: str | None) -> str:
    if record.id in retracted:
        return "retracted"
    if record.choice in ("skip", "flag"):
        return record.choice
    if record.kind in ("region", "words", "text"):
        return record.kind
    if record.gold:
        return "gold"
    return "criterion" if criterion is not None and record.criterion != criterion else ""


def _comparisons(records: Iterable[Feedback], dropped: Counter[str]) -> Iterator[_Comparison]:
    single: defaultdict[tuple[str, ...], list[Feedback]] = defaultdict(list)
    for record in records:
        if record.kind in ("rating", "like") and len(record.sample_ids) == 1:
            single[record.judge, record.prompt_id, record.criterion, record.kind].append(record)
            continue
        for comparison in _within(record):
            yield from _unless_same(comparison, dropped)
    for group in single.values():
        comparisons = list(_between(group))
        dropped["alone"] += 0 if comparisons else len(group)
        yield from comparisons
    if not dropped["alone"]:
        del dropped["alone"]


def within(record: Feedback) -> Iterator[tuple[str, str, float]]:
    """The comparisons inside one record: (a, b, how much of the preference goes to a), in the order of the images.

    Best-of-N says that the chosen one beats each other one, and nothing about the others.
    """
    if record.kind not in ("pair", "ranking", "best", "rating", "like"):
        return
    values = record.values or PAIR_VALUES.get(record.choice or "", ())
    for i, j in combinations(range(len(values)), 2):
        if record.kind == "best" and values[i] == values[j]:
            continue
        if record.kind == "pair":
            share = values[i]
        else:
            share = _share(values[i], values[j], lower_is_better=record.kind == "ranking")
        yield record.sample_ids[i], record.sample_ids[j], share


def _within(record: Feedback) -> Iterator[_Comparison]:
    for a, b, share in within(record):
        yield _compare(record, a, b, share, (record.id,))


def _between(group: list[Feedback]) -> Iterator[_Comparison]:
    """All comparisons among single ratings of one judge; several ratings of one image count with their mean."""
    ratings: defaultdict[str, list[Feedback]] = defaultdict(list)
    for record in group:
        ratings[record.sample_ids[0]].append(record)
    mean = {sample: math.fsum(r.values[0] for r in given) / len(given) for sample, given in ratings.items()}
    for a, b in combinations(sorted(ratings), 2):
        ids = tuple(record.id for record in (*ratings[a], *ratings[b]))
        yield _compare(group[0], a, b, _share(mean[a], mean[b], lower_is_better=False), ids)


def _share(a: float, b: float, *, lower_is_better: bool) -> float:
    if a == b:
        return 0.5
    return float((a < b) == lower_is_better)


def _compare(record: Feedback, a: str, b: str, share: float, ids: tuple[str, ...]) -> _Comparison:
    first, second = min(a, b), max(a, b)
    key = _Key(record.prompt_id, record.criterion, first, second)
    return _Comparison(key, share if a == first else 1 - share, ids)


def _unless_same(comparison: _Comparison, dropped: Counter[str]) -> Iterator[_Comparison]:
    if comparison.key.first == comparison.key.second:
        dropped["same image"] += 1
    else:
        yield comparison


def _preference(key: _Key, votes: list[_Comparison], weight: Literal["one", "votes"]) -> Preference:
    share = math.fsum(vote.share for vote in votes) / len(votes)
    if abs(share - 0.5) < _BALANCED:
        share = 0.5
    winner, loser = (key.first, key.second) if share >= 0.5 else (key.second, key.first)
    return Preference(
        winner=winner,
        loser=loser,
        prompt_id=key.prompt_id,
        probability=max(share, 1 - share),
        weight=len(votes) if weight == "votes" else 1.0,
        criterion=key.criterion,
        feedback_ids=tuple(sorted({name for vote in votes for name in vote.feedback_ids})),
    )
