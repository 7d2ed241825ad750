"""The scores of one shard as an append-only file: what was written survives kill -9, a torn last line is cut off.

One JSON object a line: `u` the unit (its place in the shard), `r` the reward, `s` the scores over the unit's prompts as
base64 float32 (NaN = none), `e` errors by prompt; or `u` and `n`, a note; or `done`. Later lines win. Whoever holds the
lock of the file owns the shard. May import: types.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from visfeedback.scoring.locks import open_locked
from visfeedback.scoring.work import Unit
from visfeedback.types.files import cut_torn_line


class Entries:
    """What a journal says: scores and errors of (unit, reward), notes of units."""

    def __init__(self) -> None:
        self.scores: dict[tuple[int, int], np.ndarray] = {}
        self.errors: dict[tuple[int, int], dict[int, str]] = {}
        self.notes: dict[int, str] = {}
        self.done = False

    def read(self, path: Path) -> Entries:
        """Add the lines of a file; one that is not there says nothing, nor does a line that a power cut spoilt: what it
        held is computed again."""
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    if line.endswith("\n"):
                        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, IndexError):
                            self._take(json.loads(line))
        return self

    def _take(self, line: dict[str, Any]) -> None:
        if line.get("done"):
            self.done = True
        elif "n" in line:
            self.notes[line["u"]] = line["n"]
        else:
            self.add(line["u"], line["r"], unpack(line["s"]), {int(p): e for p, e in line.get("e", {}).items()})

    def add(self, unit: int, reward: int, scores: np.ndarray, errors: Mapping[int, str]) -> None:
        """New scores stand over old ones; an error goes when its score comes."""
        key = (unit, reward)
        old = self.scores.get(key)
        merged = scores if old is None else np.where(np.isfinite(scores), scores, old)
        self.scores[key] = merged
        known = {**self.errors.get(key, {}), **errors}
        self.errors[key] = {prompt: error for prompt, error in known.items() if not np.isfinite(merged[prompt])}

    def missing(self, unit: int, reward: int, prompts: int) -> np.ndarray:
        """(P,) where there is no score yet."""
        scores = self.scores.get((unit, reward))
        return np.ones(prompts, bool) if scores is None else ~np.isfinite(scores)


class Journal:
    """A shard that is held by this process, ready for more lines."""

    def __init__(self, path: Path, descriptor: int, first: int) -> None:
        self._descriptor, self._first = descriptor, first
        cut_torn_line(path)
        self.entries = Entries().read(path)
        self.scored = 0
        """scores added by this process"""

    @classmethod
    def claim(cls, path: Path, first: int, *, wait: bool = False) -> Journal | None:
        """The shard whose first unit is ``first``; None when another process has it, or its folder is gone."""
        descriptor = open_locked(path, wait=wait)
        return None if descriptor is None else cls(path, descriptor, first)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, unit: Unit, reward: int, scores: np.ndarray, errors: Mapping[int, str]) -> None:
        self.scored += int(np.isfinite(scores).sum())
        self._write(line_of(unit.number - self._first, reward, scores, errors))

    def note(self, unit: Unit, text: str) -> None:
        self._write(json.dumps({"u": unit.number - self._first, "n": text}, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Nothing is missing any more; the shard is given back."""
        self._write(json.dumps({"done": True}) + "\n")
        os.fsync(self._descriptor)
        self.close()

    def close(self) -> None:
        """Give the shard back; what is in it stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, line: str) -> None:
        """Straight to the system: a killed process loses nothing that it wrote."""
        data = line.encode()
        while data:
            data = data[os.write(self._descriptor, data) :]


def line_of(unit: int, reward: int, scores: np.ndarray, errors: Mapping[int, str] | None = None) -> str:
    """The line of a journal for the unit at place ``unit`` of its shard."""
    line: dict[str, Any] = {"u": unit, "r": reward, "s": pack(scores)}
    return json.dumps(line | ({"e": errors} if errors else {}), ensure_ascii=False) + "\n"


def pack(scores: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(scores, "<f4").tobytes()).decode()


def unpack(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")
