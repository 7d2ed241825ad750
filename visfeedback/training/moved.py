"""Run folders that were moved or copied, alone or with what they learn from: where a recorded file is now.

A run goes on from what its folder records, so a path matters only where a picture has to be read again: when it is not
where it was, it is looked for beside the run. May import: types.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from visfeedback.types.records import Frozen

Record = TypeVar("Record", bound=Frozen)

PLACES = {"model.adapter", "data.store", "data.pairs", "data.images", "data.real", "data.paths"}
"""settings that name files; what was read there is recorded in the run, and an adapter is known by its content"""
PATHS = ("path", "winner_path", "loser_path", "folder")
"""fields of records that hold absolute paths"""
ABOVE = 3
"""folders above a run in which its data may lie"""


def came_along(before: str, now: str, root: Path) -> bool:
    """Whether ``now`` is what ``before`` was called: it lies beside the run in ``root``, under the same name."""
    scheme, _, place = now.rpartition(":///")
    if not before.startswith(scheme) or not before or not place:
        return False
    beside = Path(os.path.relpath(place, root)).parts
    names = [part for part in beside if part != os.pardir]
    old = Path(before.rpartition(":///")[2]).parts
    return len(beside) - len(names) <= ABOVE and bool(names) and list(old[-len(names) :]) == names


def follow(records: Sequence[Record], root: Path) -> list[Record]:
    """The same records with the paths of today; those whose files are nowhere stay as they are."""
    return [record.model_copy(update=_found(record, root)) for record in records]


def _found(record: Frozen, root: Path) -> dict[str, str]:
    recorded = {name: getattr(record, name) for name in PATHS if isinstance(getattr(record, name, None), str)}
    return {name: find(path, root) for name, path in recorded.items() if path and not os.path.exists(path)}


def find(recorded: str, root: Path) -> str:
    """The longest end of a path that exists under a folder above ``root``, or the path as it is."""
    parts = Path(recorded).parts
    for start in range(1, len(parts)):
        for above in list(root.absolute().parents)[:ABOVE]:
            there = above.joinpath(*parts[start:])
            if there.exists():
                return str(there)
    return recorded
