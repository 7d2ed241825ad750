"""What passes through a scoring run: who scores, what is scored, and who keeps the scores. May import: types."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from visfeedback.plugins import InputError
from visfeedback.types.protocols import Reward
from visfeedback.types.records import Frozen

NO_PROMPT = "no prompt for this image; give --prompts, a metadata.jsonl, or NAME.txt (UTF-8) beside NAME.png"
NOT_FINITE = "the score is not a finite number"


class Identity(Frozen):
    """What a score must carry so that it can be made again: the columns of the table that belong to the reward."""

    reward: str
    model: str
    revision: str
    checkpoint_sha256: str
    preprocessing: str
    dtype: str

    @property
    def key(self) -> tuple[str, ...]:
        """Equal when scores are equal: the same weights under another path are the same."""
        model = "" if self.checkpoint_sha256 else self.model
        return (self.reward, model, self.revision, self.checkpoint_sha256, self.preprocessing, self.dtype)


def identity(reward: Reward) -> Identity:
    origin = reward.origin
    return Identity(
        reward=reward.name, model=origin.model, revision=origin.revision, checkpoint_sha256=origin.checkpoint_sha256,
        preprocessing=reward.preprocessing, dtype=origin.dtype,
    )  # fmt: skip


def identities(rewards: Sequence[Reward]) -> list[Identity]:
    """Raises InputError when there is no reward, or one comes twice."""
    found = [identity(reward) for reward in rewards]
    if not found:
        raise InputError("no rewards; name at least one, for example --reward shapes_clip")
    for number, one in enumerate(found):
        if one.key in [other.key for other in found[:number]]:
            raise InputError(f"--reward names {one.reward} twice with the same weights; name it once")
    return found


@dataclass(frozen=True, slots=True)
class Unit:
    """One image content with all prompts it has to be scored against; the same bytes are never two units."""

    number: int
    sha256: str
    """of the bytes"""
    location: str
    prompts: tuple[str | None, ...]
    """None where there is no prompt: rewards that read none score it all the same"""


@dataclass(frozen=True, slots=True)
class Task:
    """What is still missing of a unit: reward number -> (P,) mask over its prompts."""

    unit: Unit
    missing: Mapping[int, np.ndarray]
    fetch: Callable[[], object] | None = None
    """bytes or PIL image; None: ask the source"""


class Shard(Protocol):
    """Keeps what comes out of some tasks."""

    def add(self, unit: Unit, reward: int, scores: np.ndarray, errors: Mapping[int, str]) -> None:
        """``scores`` (P,) float32, NaN where nothing was scored now; ``errors`` by number of the prompt."""
        ...

    def note(self, unit: Unit, text: str) -> None: ...

    def finish(self) -> None:
        """All tasks are answered."""
        ...


@dataclass
class Held:
    """The tasks of one shard, read lazily."""

    shard: Shard
    tasks: Iterator[Task]


@dataclass
class Memory:
    """The Shard of images in memory: scores (U, P) for each reward."""

    scores: list[np.ndarray]
    errors: dict[tuple[int, int, int], str] = field(default_factory=dict)
    """(unit, reward, prompt) -> why there is no score"""
    notes: dict[int, str] = field(default_factory=dict)

    def add(self, unit: Unit, reward: int, scores: np.ndarray, errors: Mapping[int, str]) -> None:
        known = np.isfinite(scores)
        self.scores[reward][unit.number, : len(scores)][known] = scores[known]
        self.errors |= {(unit.number, reward, prompt): error for prompt, error in errors.items()}

    def note(self, unit: Unit, text: str) -> None:
        self.notes[unit.number] = text

    def finish(self) -> None:
        pass
