"""Checkpoints: folders `checkpoints/step-N` that are whole or absent, with all a run needs to go on bit for bit (as far
as the device's kernels repeat themselves: always on a CPU).

A folder is written under a hidden name, every file fsynced, then renamed: one that is there is complete.
  adapter.safetensors   what is trained              ema.safetensors   its running average, when on
  optimizer.pt          optimizer (and loss scaler)   random-R.pt       random states of process R
  method.pt             the method's own state        state.json        step, clocks, half-filled metrics
  source-R.pt           what the batches of process R depend on besides the step: a half-used round of fresh images
May import: types, plugins.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.types.files import sync_folder, write_atomic, write_json

DAMAGE = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, SafetensorError, UnpicklingError)
"""what reading a file that is not whole raises"""


@dataclass
class Position:
    """How far the run is."""

    step: int = 0  # finished optimizer steps = place in the data
    seconds: float = 0.0  # of training, all starts together
    window: list[dict[str, float]] = field(default_factory=list)  # steps not yet in metrics.jsonl
    stopped: str = ""  # why the run ended before its last step


@dataclass(frozen=True)
class Snapshot:
    """What `save` writes besides random states."""

    position: Position
    adapter: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    method: dict[str, Any]
    ema: Mapping[str, Tensor] | None = None
    source: dict[str, Any] = field(default_factory=dict)  # this process's own


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step}"


def steps(root: Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    return sorted(int(p.name.removeprefix("step-")) for p in root.glob("step-*") if p.name[5:].isdigit())


def save(root: Path, snapshot: Snapshot, rank: int, barrier: Callable[[], None], keep: int) -> Path:
    """Write the folder of this step, all processes together, and drop all but the ``keep`` newest."""
    target = step_folder(root, snapshot.position.step)
    if target.exists():
        return target
    hidden = root / f".{target.name}"
    if rank == 0:
        shutil.rmtree(hidden, ignore_errors=True)  # the half of a writer that was killed
        hidden.mkdir(parents=True)
    barrier()
    try:
        write_atomic(hidden / f"random-{rank}.pt", _pickled(random_states()))
        if snapshot.source:
            write_atomic(hidden / f"source-{rank}.pt", _pickled(snapshot.source))
        if rank == 0:
            _write(hidden, snapshot)
    except OSError:  # the disk is full: leave it as it was
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    barrier()
    if rank == 0:
        hidden.rename(target)
        sync_folder(root)
        _drop_old(root, keep)
    barrier()
    return target


def _write(folder: Path, snapshot: Snapshot) -> None:
    write_atomic(folder / "adapter.safetensors", to_bytes(dict(snapshot.adapter)))
    if snapshot.ema is not None:
        write_atomic(folder / "ema.safetensors", to_bytes(dict(snapshot.ema)))
    write_atomic(folder / "optimizer.pt", _pickled(snapshot.optimizer))
    write_atomic(folder / "method.pt", _pickled(snapshot.method))
    write_json(folder / "state.json", asdict(snapshot.position))


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _drop_old(root: Path, keep: int) -> None:
    for step in steps(root)[:-keep]:
        folder = step_folder(root, step)
        hidden = folder.rename(root / f".old-{folder.name}")  # never a half-deleted folder under its own name
        shutil.rmtree(hidden, ignore_errors=True)


def load(folder: Path, rank: int = 0) -> Snapshot:
    """The snapshot in a checkpoint's folder, tensors on the CPU. Random states: `restore_random_states`.

    Raises InputError when a file of it is damaged or missing.
    """
    ema, source = folder / "ema.safetensors", folder / f"source-{rank}.pt"
    with _whole(folder):
        return Snapshot(
            position=Position(**json.loads((folder / "state.json").read_text(encoding="utf-8"))),
            adapter=load_file(folder / "adapter.safetensors"),
            optimizer=_unpickled(folder / "optimizer.pt"),
            method=_unpickled(folder / "method.pt"),
            ema=load_file(ema) if ema.exists() else None,
            source=_unpickled(source) if source.exists() else {},
        )


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """We write checkpoints whole; a copy that broke off, or a failing disk, is the user's to mend."""
    try:
        yield
    except DAMAGE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{folder} is damaged ({why}); remove it, and --resume goes on from the checkpoint before it"
        ) from None


def _unpickled(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def random_states() -> dict[str, Any]:
    """Every global random state of this process, as plain values and tensors."""
    name, keys, *rest = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),  # pyright: ignore[reportAttributeAccessIssue]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(folder: Path, rank: int) -> None:
    """Put back what `save` stored for this process. Raises InputError when it is damaged or missing."""
    with _whole(folder):
        states = _unpickled(folder / f"random-{rank}.pt")
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
