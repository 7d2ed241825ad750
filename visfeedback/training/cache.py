"""Work that never changes, done once: rows of tensors addressed by key, computed in fixed shards and mapped from disk.

A table is a folder of safetensors shards. Its name carries a digest of everything its rows depend on, so that a stale
table is never read; a shard's name carries a digest of its keys. Keys are cut into shards by their order alone: a
fill that was killed goes on with the same batches and ends with the same bits, whatever the number of processes.
May import: types.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from visfeedback.types.files import write_atomic
from visfeedback.types.protocols import Progress

SHARD = 256
"""rows in a file: what a killed fill loses at most"""

Compute = Callable[[Sequence[str]], dict[str, Tensor]]
"""keys -> named tensors, first axis = keys"""


class Rows(Protocol):
    """Named tensors of some keys, first axis in the order of the keys."""

    def rows(self, keys: Sequence[str]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Live:
    """Rows computed anew at every call."""

    compute: Compute

    def rows(self, keys: Sequence[str]) -> dict[str, Tensor]:
        distinct = list(dict.fromkeys(keys))
        place = {key: i for i, key in enumerate(distinct)}
        index = torch.tensor([place[key] for key in keys])
        return {name: tensor[index.to(tensor.device)] for name, tensor in self.compute(distinct).items()}


class Stored:
    """Rows of a filled table; the files are memory-mapped, so only what is used takes memory."""

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        self._shards = [load_file(folder / name) for name, _ in shards(keys)]
        self._place = {key: divmod(i, SHARD) for i, key in enumerate(keys)}

    def rows(self, keys: Sequence[str]) -> dict[str, Tensor]:
        places = [self._place[key] for key in keys]
        return {name: torch.stack([self._shards[s][name][row] for s, row in places]) for name in self._shards[0]}


def shards(keys: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """File name and keys of each shard."""
    parts = [keys[i : i + SHARD] for i in range(0, len(keys), SHARD)]
    return [(f"{i:05d}-{digest(list(part))}.safetensors", part) for i, part in enumerate(parts)]


def digest(value: Any) -> str:
    """16 hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def fill(
    folder: Path, keys: Sequence[str], compute: Compute, chunk: int, report: tuple[Progress, str],
    rank: int = 0, ranks: int = 1,
) -> None:  # fmt: skip
    """Compute the missing shards of ``keys``, ``chunk`` rows at a time; shard i is the work of process i mod ranks."""
    mine = [shard for i, shard in enumerate(shards(keys)) if i % ranks == rank]
    missing = [(name, part) for name, part in mine if not (folder / name).exists()]
    if not missing:
        return
    progress, description = report
    with progress(description, sum(len(part) for _, part in missing)) as advance:
        for name, part in missing:
            write_atomic(folder / name, save(_compute(part, compute, chunk, advance)))


def _compute(keys: Sequence[str], compute: Compute, chunk: int, advance: Callable[[int], None]) -> dict[str, Tensor]:
    parts: list[dict[str, Tensor]] = []
    for i in range(0, len(keys), chunk):
        part = compute(keys[i : i + chunk])
        parts.append({name: tensor.detach().cpu() for name, tensor in part.items()})
        advance(len(keys[i : i + chunk]))
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
