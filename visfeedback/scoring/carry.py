"""Scores that are known already, from the table of an earlier run or from a run that was stopped, into a new plan.

A row is carried when image content, prompt and reward (weights included) are asked for again. A row that is not asked
for would be lost by writing the new table over the old one, so such a command is refused. May import: types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, TextIO

import numpy as np
import pyarrow as pa

from visfeedback.plugins import InputError
from visfeedback.scoring.journal import line_of
from visfeedback.scoring.plan import Digests, Plan
from visfeedback.scoring.work import Identity

IDENTITY = tuple(Identity.model_fields)


class Carrier:
    """Writes known scores into the journals of a plan that nobody works on yet."""

    def __init__(self, plan: Plan, known: Digests) -> None:
        self._plan, self._known = plan, known
        self._rewards = {one.key: number for number, one in enumerate(plan.rewards)}
        self._columns = {prompt: number for number, prompt in enumerate(plan.columns or ())}
        self._shard = -1
        self._file: TextIO | None = None

    def carry(self, rows: Iterable[pa.Table], where: str) -> int:
        """How many scores were carried. Raises InputError when ``where`` holds a score that is not asked for."""
        count = 0
        try:
            for sha256, own in groupby(self._rows(rows), key=lambda row: row["image_sha256"]):
                count += self._unit(str(sha256), own, where)
        finally:
            self._close()
        return count

    def _rows(self, pieces: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
        for piece in pieces:
            yield from piece.to_pylist()

    def _unit(self, sha256: str, rows: Iterable[Mapping[str, Any]], where: str) -> int:
        scores: dict[int, np.ndarray] = {}
        count = 0
        for row in rows:
            reward = self._rewards.get(Identity(**{name: row[name] or "" for name in IDENTITY}).key)
            if reward is None:
                asked = row["reward"] in {one.reward for one in self._plan.rewards}
                other = " with other weights, configuration or precision" if asked else ""
                raise _refusal(where, f"of the reward {row['reward']} ({row['model']}){other}")
            if sha256 not in self._known:
                raise _refusal(where, f"of the image {row['image']} (sha256 {sha256[:12]})")
            _, _, prompts = self._known[sha256]
            place = self._place(row["prompt"], prompts)
            if place is None:
                raise _refusal(where, f"of the image {row['image']} with the prompt {row['prompt']!r}")
            size = len(self._columns) or len(prompts)
            scores.setdefault(reward, np.full(size, np.nan, np.float32))[place] = row["score"]
            count += 1
        for reward, values in scores.items():
            self._write(self._known[sha256][0], reward, values)
        return count

    def _place(self, prompt: str | None, prompts: list[str | None]) -> int | None:
        if self._columns:
            return self._columns.get(prompt or "")
        return prompts.index(prompt) if prompt in prompts else None

    def _write(self, unit: int, reward: int, values: np.ndarray) -> None:
        """Units come nearly in order, so one file at a time is open."""
        shard, place = divmod(unit, self._plan.shard)
        if shard != self._shard:
            self._close()
            self._shard, self._file = shard, self._plan.journal(shard).open("a", encoding="utf-8")
        assert self._file is not None
        self._file.write(line_of(place, reward, values))

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._shard, self._file = -1, None


def _refusal(where: str, what: str) -> InputError:
    return InputError(f"{where} holds a score {what} that this command does not ask for; give another --out")
