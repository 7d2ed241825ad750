"""Which questions are asked: pairs, groups or single images as tasks; in the background, the telling ones first."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

from pydantic import Field

from visfeedback.feedback import active, plan, queue
from visfeedback.feedback.queue import Pair, by_prompt
from visfeedback.plugins import InputError
from visfeedback.store import Store
from visfeedback.store.desk import Desk
from visfeedback.store.tasks import IMAGES, Kind, Task
from visfeedback.types.records import Choice, Frozen, Sample

NEW_ANSWERS = 5  # after so many the choice is made again
SECONDS = 2.0  # but not more often than this


class Asking(Frozen):
    """What is asked about a set of samples."""

    kind: Kind = "pair"
    """pair, best, ranking, rating, like, region, words or text"""
    group: int = Field(default=4, ge=1, le=12)
    """images of a question that is not about exactly one or two"""
    criteria: tuple[str, ...] = Field(default=("overall",), min_length=1, max_length=12)
    """what is judged; several for ratings"""
    scale: tuple[float, float] = (1.0, 5.0)
    """lowest and highest rating"""
    overlap: int = Field(default=1, ge=1)
    """how many judges answer each question"""
    repeats: float = Field(default=0.1, ge=0, le=1)
    """share of the questions that a judge may be asked twice, to see whether the answer is the same"""
    seed: int = Field(default=0, ge=0)
    """draws pairs, groups and repeats"""

    @property
    def size(self) -> int:
        """Images of one question."""
        low, high = IMAGES[self.kind]
        return min(high, max(low, self.group))

    def plan(self) -> plan.Plan:
        return plan.Plan(overlap=self.overlap, repeats=self.repeats, criteria=self.criteria, seed=self.seed)


def questions(samples: Sequence[Sample], asking: Asking, how: str = "random", n: int | None = None) -> list[Task]:
    """At most ``n`` tasks, spread over the prompts. Raises InputError when the samples allow none."""
    if asking.kind == "pair":
        return plan.tasks(queue.pairs(samples, "all" if how == "all" else "random", n, asking.seed), asking.plan())
    least, rng, groups = IMAGES[asking.kind][0], random.Random(asking.seed), by_prompt(samples)
    sets = [part for group in groups for part in _parts(group, asking.size, least, rng)]
    if not sets:
        raise InputError(f"no prompt has {least} different images for a {asking.kind}; make more with --per-prompt")
    rng.shuffle(sets)
    return [question(part, asking, rng) for part in sets[:n]]


def question(images: Sequence[Sample], asking: Asking, rng: random.Random) -> Task:
    """One task about these images of one prompt."""
    return Task(
        kind=asking.kind, prompt_id=images[0].prompt_id, sample_ids=tuple(sample.id for sample in images),
        criteria=asking.criteria, scale=asking.scale, overlap=asking.overlap, repeat=rng.random() < asking.repeats,
    )  # fmt: skip


def _parts(group: list[Sample], size: int, least: int, rng: random.Random) -> list[list[Sample]]:
    """The images of a prompt in sets of ``size``; what is left over is a smaller set if it is large enough."""
    shuffled = rng.sample(group, len(group))
    parts = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    return [part for part in parts if len(part) >= least]


def gold(rows: Sequence[tuple[Sample, Sample, float]], asking: Asking) -> list[Task]:
    """Pairs with a known answer: (first, second, 1 when the first is better, 0 the second, .5 a tie)."""
    answers: dict[float, Choice] = {1.0: "a", 0.0: "b", 0.5: "tie"}
    expected = dict[int, Choice]((i, answers[share]) for i, (_, _, share) in enumerate(rows) if share in answers)
    return plan.gold_tasks([(a, b) for a, b, _ in rows], expected, asking.plan())


class Active:
    """Keeps the pairs at the head of the queue that should tell most, as votes come in; a thread of its own."""

    def __init__(self, store: Store, desk: Desk, samples: Sequence[Sample], asking: Asking, n: int | None, ahead: int):
        """``n``: how many pairs are asked in all; ``ahead``: how many are chosen at a time."""
        self._store, self._desk, self._samples = store, desk, samples
        self._asking, self._left, self._ahead = asking, n, ahead
        self._first: set[str] = set()
        self._seen = -1
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="active choice", daemon=True)

    def start(self) -> None:
        """Chooses the first pairs now, then goes on in the background."""
        self.choose()
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join(timeout=30)

    def choose(self) -> int:
        """Ask the most telling pairs first; how many tasks are new. Those chosen before and still open come after."""
        self._seen = self._store.feedback_count()
        room = self._ahead if self._left is None else min(self._ahead, self._left)
        pairs = self._best(room) if room else []
        tasks = [task.model_copy(update={"project": self._desk.project}).named() for task in self._tasks(pairs)]
        added = self._desk.add(tasks)
        if self._left is not None:
            self._left -= added
        priorities = {task.id: float(len(tasks) - i) for i, task in enumerate(tasks)}
        self._desk.prioritise(dict.fromkeys(self._first - priorities.keys(), 0.0) | priorities)
        self._first = set(priorities)
        return added

    def _best(self, n: int) -> list[Pair]:
        return active.active_pairs(self._samples, self._store.feedback(), n, self._asking.seed)

    def _tasks(self, pairs: Sequence[Pair]) -> list[Task]:
        return plan.tasks(pairs, self._asking.plan())

    def _run(self) -> None:
        while not self._end.wait(SECONDS):
            if self._store.feedback_count() >= self._seen + NEW_ANSWERS:
                self.choose()
