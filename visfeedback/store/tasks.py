"""What is asked and what may be answered: a task for judges, its presentation to one of them, the answer.

A task is a question about one to many images of a prompt. Answers are checked here, against the task, before anything
is written: a client may send whatever it likes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from visfeedback.plugins import InputError
from visfeedback.types.records import PAIR_VALUES, Choice, Frozen, Region, text_id

Kind = Literal["pair", "ranking", "best", "rating", "like", "region", "words", "text"]
IMAGES: dict[str, tuple[int, int]] = {
    "pair": (2, 2), "ranking": (2, 12), "best": (2, 12), "rating": (1, 12), "like": (1, 1), "region": (1, 1),
    "words": (1, 1), "text": (1, 1),
}  # fmt: skip
"""How many images each kind is about."""


class Task(Frozen):
    id: str = ""
    """made from the content when left out: adding a task again adds nothing"""
    project: str = "default"
    """one collection; judges are handed tasks of one project"""
    kind: Kind = "pair"
    prompt_id: str
    sample_ids: tuple[str, ...]
    criteria: tuple[str, ...] = Field(default=("overall",), min_length=1, max_length=12)
    """what is judged; more than one for ratings of several aspects"""
    scale: tuple[float, float] = (1.0, 5.0)
    """lowest and highest rating"""
    overlap: int = Field(default=1, ge=1, le=1_000_000)
    """how many judges shall answer; never exceeded"""
    priority: float = 0.0
    """higher is asked first"""
    gold: bool = False
    """the answer is known: a test of the judge, mixed in among the others"""
    expected: Choice | None = None
    """the known answer"""
    repeat: bool = False
    """may be asked a second time of the same judge, to see whether the answer is the same"""

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        low, high = IMAGES[self.kind]
        if not low <= len(self.sample_ids) <= high or len(set(self.sample_ids)) != len(self.sample_ids):
            raise ValueError(f"a {self.kind} task needs {low} to {high} different images, not {len(self.sample_ids)}")
        if self.gold and self.expected is None:
            raise ValueError("a gold task needs `expected`, the known answer")
        return self

    def named(self) -> Task:
        """With its id."""
        parts = (self.project, self.kind, self.prompt_id, *self.sample_ids, *self.criteria)
        return self if self.id else self.model_copy(update={"id": text_id("task", *parts)})


class Presentation(Frozen):
    """A task as it is shown to one judge. ``token`` is the only thing a browser needs to know."""

    token: str
    task: Task
    judge: str
    number: int
    """which of the judge's presentations it is, 0 = first"""
    turn: int
    """1 when the judge has answered the task before"""
    sides: tuple[int, ...]
    """`sides[i]` is the position of `task.sample_ids[i]`, 0 = left or first"""
    expires_at: float
    """seconds since 1970: afterwards the task may go to somebody else"""

    @property
    def shown(self) -> tuple[str, ...]:
        """Sample ids in the order of positions."""
        by_side = dict(zip(self.sides, self.task.sample_ids, strict=True))
        return tuple(by_side[side] for side in sorted(by_side))


class Answer(Frozen):
    """What a judge says, by position on the screen: `left` is whatever stood at position 0."""

    choice: Literal["left", "right", "tie", "both_bad", "skip", "flag"] | None = None
    """pairs; `skip` and `flag` for every kind"""
    best: int | None = Field(default=None, ge=0, le=11)
    """best-of-N: the position of the best"""
    ranks: tuple[float, ...] = Field(default=(), max_length=12)
    """ranking: the rank of each position, 0 = best, ties allowed"""
    ratings: dict[str, tuple[float, ...]] = Field(default_factory=dict, max_length=12)
    """criterion -> rating of each position"""
    like: bool | None = None
    regions: tuple[Region, ...] = Field(default=(), max_length=200)
    words: tuple[int, ...] = Field(default=(), max_length=500)
    note: str = Field(default="", max_length=4000)

    def fields(self, task: Task, sides: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """Fields of `Feedback`, one dict for each criterion, in the order of ``task.sample_ids``.

        Raises InputError when the answer does not fit the task.
        """
        common: dict[str, Any] = {"kind": task.kind, "criterion": task.criteria[0], "note": self.note}
        if self.choice in ("skip", "flag"):
            yield common | {"choice": self.choice}
            return
        if task.kind == "rating":
            yield from self._ratings(task, sides, common)
            return
        yield common | getattr(self, f"_{task.kind}")(task, sides)

    def _pair(self, task: Task, sides: tuple[int, ...]) -> dict[str, Any]:
        if self.choice is None:
            raise InputError("a pair is answered with left, right, tie, both_bad, skip or flag")
        choice: str = self.choice
        if choice in ("left", "right"):
            choice = "a" if sides[0] == (0 if choice == "left" else 1) else "b"
        return {"choice": choice, "values": PAIR_VALUES[choice]}

    def _best(self, task: Task, sides: tuple[int, ...]) -> dict[str, Any]:
        if self.best is None or self.best not in sides:
            raise InputError(f"best must be a position below {len(sides)}")
        return {"values": tuple(float(side == self.best) for side in sides)}

    def _ranking(self, task: Task, sides: tuple[int, ...]) -> dict[str, Any]:
        _check_numbers("ranks", self.ranks, len(sides), 0, len(sides) - 1)
        return {"values": tuple(self.ranks[side] for side in sides)}

    def _like(self, task: Task, sides: tuple[int, ...]) -> dict[str, Any]:
        if self.like is None:
            raise InputError("like must be true or false")
        return {"values": (1.0 if self.like else -1.0,)}

    def _region(self, task: Task, sides: tuple[int, ...]) -> dict[str, Any]:
        return {"regions": self.regions}

    def _words(self, task: Task, sides: tuple[int, ...]) -> dict[str, Any]:
        if any(word < 0 for word in self.words) or len(set(self.words)) != len(self.words):
            raise InputError("words are different numbers from 0")
        return {"words": self.words}

    def _text(self, task: Task, sides: tuple[int, ...]) -> dict[str, Any]:
        if not self.note.strip():
            raise InputError("the note is empty; write something or skip")
        return {}

    def _ratings(self, task: Task, sides: tuple[int, ...], common: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if set(self.ratings) != set(task.criteria):
            raise InputError(f"expected ratings of {', '.join(task.criteria)}")
        for criterion in task.criteria:
            values = self.ratings[criterion]
            _check_numbers(criterion, values, len(sides), *task.scale)
        for criterion in task.criteria:
            values = tuple(self.ratings[criterion][side] for side in sides)
            yield common | {"criterion": criterion, "values": values}


def _check_numbers(name: str, values: tuple[float, ...], count: int, low: float, high: float) -> None:
    if len(values) != count or not all(math.isfinite(value) and low <= value <= high for value in values):
        raise InputError(f"{name}: expected {count} numbers from {low:g} to {high:g}")
