"""Work that never changes, done once: rows of tensors addressed by key, computed in fixed shards and mapped from disk.

A table is a folder of safetensors shards. Its name carries a digest of everything its rows depend on, so that a stale
table is never read; a shard's name carries a digest of its keys. Keys are cut into chunks and shards by their order
alone: a fill that was killed goes on with the same batches and ends with the same bits, whatever the number of
processes, and so does one that is asked for more keys later.
May import: types, plugins.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.types.files import write_atomic
from visfeedback.types.protocols import Progress

SHARD = 256
"""rows in a file, about: what a killed fill loses at most"""

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

    def __init__(self, folder: Path, keys: Sequence[str], chunk: int) -> None:
        self._shards = [_opened(folder / name) for name, _ in shards(keys, chunk)]
        self._place = {key: divmod(i, shard_rows(chunk)) for i, key in enumerate(keys)}

    def rows(self, keys: Sequence[str]) -> dict[str, Tensor]:
        places = [self._place[key] for key in keys]
        return {name: torch.stack([self._shards[s][name][row] for s, row in places]) for name in self._shards[0]}


def _opened(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        line = (str(error).splitlines() or ["it cannot be read"])[0]
        raise InputError(f"{file} is damaged ({line}); remove it, and its rows are computed again") from None


def shard_rows(chunk: int) -> int:
    """Rows in a file: whole chunks, so that a chunk is the same rows wherever files begin."""
    return chunk * max(1, SHARD // chunk)


def shards(keys: Sequence[str], chunk: int) -> list[tuple[str, Sequence[str]]]:
    """File name and keys of each shard."""
    rows = shard_rows(chunk)
    parts = [keys[i : i + rows] for i in range(0, len(keys), rows)]
    return [(f"{i:05d}-{digest(list(part))}.safetensors", part) for i, part in enumerate(parts)]


def digest(value: Any) -> str:
    """16 hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def fill(
    folder: Path, keys: Sequence[str], compute: Compute, chunk: int, report: tuple[Progress, str],
    rank: int = 0, ranks: int = 1, pad: bool = False,
) -> None:  # fmt: skip
    """Compute the missing shards of ``keys``, ``chunk`` rows at a time; shard i is the work of process i mod ranks.

    With ``pad`` the last chunk is as large as the others, its last key repeated: a row then has the same bits whatever
    keys are added behind it later. Says how large the files will be. Raises InputError when the disk has no room.
    """
    missing = [(i, *shard) for i, shard in enumerate(shards(keys, chunk)) if not (folder / shard[0]).exists()]
    mine = [(name, part) for i, name, part in missing if i % ranks == rank]
    if not mine:
        return
    first: dict[str, Tensor] | None = _chunk(mine[0][1], 0, compute, chunk, pad)
    size = sum(len(part) for _, _, part in missing) * sum(tensor[0].nbytes for tensor in first.values())
    _check_room(folder, size)
    progress, description = report
    with progress(f"{description} ({in_words(size)})", sum(len(part) for _, part in mine)) as advance:
        for name, part in mine:
            rows: list[dict[str, Tensor]] = []
            for start in range(0, len(part), chunk):
                rows.append(first or _chunk(part, start, compute, chunk, pad))
                first = None
                advance(len(part[start : start + chunk]))
            write_atomic(folder / name, save(_joined(rows)))


def _chunk(keys: Sequence[str], start: int, compute: Compute, chunk: int, pad: bool) -> dict[str, Tensor]:
    part = keys[start : start + chunk]
    full = [*part, *([part[-1]] * (chunk - len(part) if pad else 0))]
    return {name: tensor.detach().cpu()[: len(part)] for name, tensor in compute(full).items()}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}


def _check_room(folder: Path, size: int) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        name = folder.name.partition("-")[0]
        raise InputError(
            f"the table {name!r} needs {in_words(size)} in {folder.parent}, {in_words(free)} are free; "
            f"free some space, or compute its rows at every use: --engine.cache.no-{name}"
        )


def in_words(size: int) -> str:
    """Bytes as people write them: ``1.5 GiB``."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"
