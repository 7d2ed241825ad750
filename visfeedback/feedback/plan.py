"""From pairs to the tasks of a collection: how many judges each, tests with a known answer, and repeats."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from pydantic import Field

from visfeedback.feedback.queue import Pair
from visfeedback.store.tasks import Task
from visfeedback.types.records import Choice, Frozen


class Plan(Frozen):
    overlap: int = Field(default=1, ge=1)
    """how many judges answer each pair"""
    repeats: float = Field(default=0.1, ge=0, le=1)
    """share of the pairs that a judge may be asked a second time"""
    criteria: tuple[str, ...] = ("overall",)
    seed: int = Field(default=0, ge=0)
    """which pairs may be repeated"""


def tasks(pairs: Iterable[Pair], plan: Plan, project: str = "default") -> list[Task]:
    """One task a pair, in the order of the pairs: the first is asked first."""
    rng = random.Random(plan.seed)
    return [
        Task(
            project=project, prompt_id=a.prompt_id, sample_ids=(a.id, b.id), criteria=plan.criteria,
            overlap=plan.overlap, repeat=rng.random() < plan.repeats,
        )
        for a, b in pairs
    ]  # fmt: skip


def gold_tasks(
    pairs: Sequence[Pair], expected: Mapping[int, Choice], plan: Plan, project: str = "default"
) -> list[Task]:
    """Pairs whose answer is certain, to be mixed in; ``expected``: number of the pair -> answer. Anybody may get them.

    Good ones look like the others and cannot be argued about.
    """
    return [
        Task(
            project=project, prompt_id=pairs[i][0].prompt_id, sample_ids=(pairs[i][0].id, pairs[i][1].id),
            criteria=plan.criteria, overlap=1_000_000, gold=True, expected=answer,
        )
        for i, answer in sorted(expected.items())
    ]  # fmt: skip
