"""Plan and journals -> rows: for the table at the end, and to carry scores from an unfinished plan to the next.

May import: types.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from visfeedback.scoring import tables
from visfeedback.scoring.journal import Entries
from visfeedback.scoring.plan import Plan
from visfeedback.scoring.work import Identity, Unit
from visfeedback.types.files import open_atomic

SHARDS = 8
"""Journals held in memory: an image that comes again later may need an early one."""
ROWS = 8192
"""Rows gathered before they are written."""


class Scored(NamedTuple):
    """All that is known of one item."""

    image: str
    unit: Unit | None
    prompts: tuple[str | None, ...]
    """the prompts of its rows"""
    scores: np.ndarray
    """(P, R), NaN where there is none"""
    errors: dict[tuple[int, int], str]
    """(prompt, reward) -> why"""
    error: str
    """why the image cannot be read; empty when it can"""


def scored(plan: Plan) -> Iterator[Scored]:
    """Every item of a plan with the scores there are, in order."""
    shards = _Shards(plan)
    for row in plan.read_items():
        if row["unit"] is None:
            yield Scored(row["image"], None, (row["prompt"],), np.empty((0, 0)), {}, row["error"])
            continue
        unit, entries = shards.find(row["unit"])
        places = range(len(unit.prompts)) if plan.columns else [unit.prompts.index(row["prompt"])]
        yield _of_unit(row["image"], unit, entries, list(places), unit.number % plan.shard, len(plan.rewards))


def _of_unit(image: str, unit: Unit, entries: Entries, places: list[int], local: int, rewards: int) -> Scored:
    scores = np.full((len(places), rewards), np.nan, np.float32)
    errors: dict[tuple[int, int], str] = {}
    for reward in range(rewards):
        found = entries.scores.get((local, reward))
        if found is not None:
            scores[:, reward] = found[places]
        why = entries.errors.get((local, reward), {})
        errors |= {(row, reward): why[place] for row, place in enumerate(places) if place in why}
    return Scored(image, unit, tuple(unit.prompts[place] for place in places), scores, errors, "")


class _Shards:
    """Units and entries of the shards read last."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._held: OrderedDict[int, tuple[list[Unit], Entries]] = OrderedDict()

    def find(self, unit: int) -> tuple[Unit, Entries]:
        shard, place = divmod(unit, self._plan.shard)
        if shard not in self._held:
            self._held[shard] = (self._plan.read_units(shard), Entries().read(self._plan.journal(shard)))
            while len(self._held) > SHARDS:
                self._held.popitem(last=False)
        units, entries = self._held[shard]
        return units[place], entries


def merge(plan: Plan, out: Path) -> None:
    """Write the table and, beside it, ``OUT.failed.jsonl`` when something failed (else a stale one is removed)."""
    failed = failed_file(out)
    rows = Rows(plan.rewards)
    lines = 0
    with open_atomic(failed) as file, tables.writing(out, plan.folder / f"merged{out.suffix}") as writer:
        for one in scored(plan):
            for line in failures(one, plan.rewards):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                lines += 1
            rows.add(one)
            if rows.count >= ROWS:
                writer.write(rows.take())
        if rows.count:
            writer.write(rows.take())
    if not lines:
        failed.unlink()


def as_tables(plan: Plan) -> Iterator[pa.Table]:
    """The scores of a plan, finished or not, as rows of the table."""
    rows = Rows(plan.rewards)
    for one in scored(plan):
        rows.add(one)
        if rows.count >= ROWS:
            yield rows.take()
    yield rows.take()


def notes(plan: Plan) -> Iterator[str]:
    """What is worth knowing about images that were scored all the same, one line each."""
    shards = _Shards(plan)
    for row in plan.read_items():
        if row["unit"] is not None:
            unit, entries = shards.find(row["unit"])
            if unit.number % plan.shard in entries.notes:
                yield f"{row['image']}: {entries.notes[unit.number % plan.shard]}"


def failed_file(out: Path) -> Path:
    return out.with_name(out.name + ".failed.jsonl")


def failures(one: Scored, rewards: list[Identity]) -> Iterator[dict[str, Any]]:
    """A line for an image that cannot be read, or for each score that is missing."""
    whole = {"image": one.image, "image_sha256": one.unit.sha256 if one.unit else None}
    if one.error:
        yield {**whole, "prompt": one.prompts[0], "reward": None, "error": one.error}
        return
    if one.errors and len(one.errors) == one.scores.size and len(set(one.errors.values())) == 1:
        only = one.prompts[0] if len(one.prompts) == 1 else None
        yield {**whole, "prompt": only, "reward": None, "error": next(iter(one.errors.values()))}
        return
    for (row, reward), error in sorted(one.errors.items()):
        yield {**whole, "prompt": one.prompts[row], "reward": rewards[reward].reward, "error": error}


class Rows:
    """Gathers scored items and turns them into tables, column by column."""

    def __init__(self, rewards: list[Identity]) -> None:
        self._about = {name: pa.array([getattr(one, name) for one in rewards], pa.string())
                       for name in (*tables.COLUMNS[3:4], *tables.COLUMNS[5:])}  # fmt: skip
        self._clear()

    def _clear(self) -> None:
        self.count = 0
        self._items: list[tuple[str, str]] = []
        self._prompts: dict[str | None, int] = {}
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, one: Scored) -> None:
        """The finite scores, prompt by prompt and reward by reward."""
        if one.unit is None:
            return
        prompt, reward = np.nonzero(np.isfinite(one.scores))
        if not len(prompt):
            return
        codes = np.array([self._prompts.setdefault(text, len(self._prompts)) for text in one.prompts])
        values = one.scores[prompt, reward].astype(np.float64)
        self._parts.append((np.full(len(prompt), len(self._items)), codes[prompt], reward, values))
        self._items.append((one.image, one.unit.sha256))
        self.count += len(prompt)

    def take(self) -> pa.Table:
        """The rows gathered so far; the next ones start anew."""
        empty = np.empty(0, np.int64)
        item, prompt, reward, score = (np.concatenate([part[i] for part in self._parts] or [empty]) for i in range(4))
        columns = {
            "image": pa.array([image for image, _ in self._items], pa.string()).take(pa.array(item)),
            "image_sha256": pa.array([sha256 for _, sha256 in self._items], pa.string()).take(pa.array(item)),
            "prompt": pa.array(list(self._prompts), pa.string()).take(pa.array(prompt)),
            "score": pa.array(score, pa.float64()),
        }
        columns |= {name: values.take(pa.array(reward)) for name, values in self._about.items()}
        self._clear()
        return pa.table([columns[name] for name in tables.COLUMNS], schema=tables.SCHEMA)
