"""How people judged: the side they favour, how fast they are, whether they repeat themselves and know the answers.

Numbers flag, they drop nobody: who is slow or contrary may be right.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from scipy.stats import binomtest

from visfeedback.preferences.agreement import answer_of
from visfeedback.types.records import Feedback

EXPECTED = "expected"
"""The key of `Feedback.extra` that holds the known answer to a gold item: a, b, tie or both_bad."""
HASTY_SECONDS = 0.7  # nobody has looked at two images in less
SAME_IN_A_ROW = 15  # the same key so often is (for a fair coin) rarer than 1 in 30,000


def wilson(wins: int, n: int) -> list[float] | None:
    """95% interval [low, high] of a share (Wilson 1927); None when n is 0."""
    return list(binomtest(wins, n).proportion_ci(method="wilson")) if n else None


def share(wins: int, n: int) -> dict[str, Any]:
    """A share with its interval and n."""
    return {"share": wins / n if n else None, "ci95": wilson(wins, n), "n": n}


@dataclass
class Person:
    """One judge, filled record by record."""

    answers: int = 0
    left: int = 0
    decided: int = 0
    gold: int = 0
    gold_right: int = 0
    repeats: int = 0
    repeats_same: int = 0
    hasty: int = 0
    row: int = 0
    longest_row: int = 0
    last_side: int | None = None
    seconds: array[float] = field(default_factory=lambda: array("d"))

    def summary(self) -> dict[str, Any]:
        timed = len(self.seconds)
        return {
            "answers": self.answers,
            "left": share(self.left, self.decided),
            "median_seconds": median(self.seconds) if timed else None,
            "hasty": share(self.hasty, timed),
            "gold": share(self.gold_right, self.gold),
            "repeats": share(self.repeats_same, self.repeats),
            "longest_row": self.longest_row,
            "flags": self.flags(),
        }

    def flags(self) -> list[str]:
        """What somebody should look at."""
        found = []
        interval = wilson(self.left, self.decided)
        if interval and not interval[0] <= 0.5 <= interval[1]:
            found.append("side")
        if len(self.seconds) >= 10 and self.hasty > len(self.seconds) / 4:
            found.append("hasty")
        if self.longest_row >= SAME_IN_A_ROW:
            found.append("row")
        interval = wilson(self.gold_right, self.gold)
        if interval and interval[1] < 0.75:
            found.append("gold")
        return found


class People:
    """All judges, in one pass: `add` records in the order of arrival, then `summary`."""

    def __init__(self) -> None:
        self.people: defaultdict[str, Person] = defaultdict(Person)
        self._first: dict[tuple[str, str, str, str, str], int] = {}

    def add(self, record: Feedback) -> None:
        person = self.people[record.judge]
        person.answers += 1
        if record.seconds is not None:
            person.seconds.append(record.seconds)
            person.hasty += record.seconds < HASTY_SECONDS
        if record.kind == "pair":
            self._side(person, record)
            self._gold(person, record)
            self._repeat(person, record)

    def _side(self, person: Person, record: Feedback) -> None:
        if record.choice not in ("a", "b") or not record.sides:
            return
        side = record.sides[0 if record.choice == "a" else 1]
        person.decided += 1
        person.left += side == 0
        person.row = person.row + 1 if side == person.last_side else 1
        person.longest_row = max(person.longest_row, person.row)
        person.last_side = side

    def _gold(self, person: Person, record: Feedback) -> None:
        if record.gold and EXPECTED in record.extra and record.choice not in ("skip", "flag"):
            person.gold += 1
            person.gold_right += record.choice == record.extra[EXPECTED]

    def _repeat(self, person: Person, record: Feedback) -> None:
        answer = answer_of(record)
        if answer is None:
            return
        a, b = sorted(record.sample_ids)
        key = (record.judge, record.prompt_id, record.criterion, a, b)
        if key not in self._first:
            self._first[key] = answer
            return
        person.repeats += 1
        person.repeats_same += self._first[key] == answer

    def summary(self) -> dict[str, Any]:
        """Side bias of all together, and each judge's numbers, by name."""
        left = sum(person.left for person in self.people.values())
        decided = sum(person.decided for person in self.people.values())
        return {"left": share(left, decided), "judges": {n: p.summary() for n, p in sorted(self.people.items())}}
