"""Stages of a program that is done once from front to back, or round after round: what is finished, and what it took.

A finished stage is a line of stages.jsonl with its facts and seconds; a program that is resumed reads it instead of
working again. May import: types.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visfeedback.types.files import append_jsonl, read_jsonl
from visfeedback.types.records import Frozen

STAGES = "stages.jsonl"


class Stage(Frozen):
    """One finished stage."""

    name: str
    """unique in its folder: `draw`, `round-2/train`"""
    seconds: float
    """of the attempt that finished it"""
    facts: dict[str, Any]
    """what it found, as JSON values"""


class Stages:
    """The finished stages of a folder."""

    def __init__(self, out: Path) -> None:
        self.file = Path(out) / STAGES
        rows = list(read_jsonl(self.file, Stage)) if self.file.exists() else []
        self._rows = {row.name: row for row in rows}

    def once(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the stage found; ``work`` is only called when it was not finished before, and must bear a second call
        after an interruption."""
        if name not in self._rows:
            began = time.perf_counter()
            facts = work()
            row = Stage(name=name, seconds=round(time.perf_counter() - began, 2), facts=facts)
            append_jsonl(self.file, [row])
            self._rows[name] = row
        return self._rows[name].facts

    @property
    def seconds(self) -> dict[str, float]:
        """Of every finished stage, in the order in which they were finished."""
        return {name: row.seconds for name, row in self._rows.items()}
