"""What surrounds a run: global random state and threads put back afterwards, signals, and a record of versions.

May import: types, plugins.
"""

from __future__ import annotations

import platform
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy
import torch

from visfeedback.plugins import VERSION
from visfeedback.training.settings import Engine
from visfeedback.types.addresses import without_passwords
from visfeedback.types.records import now

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")


@contextmanager
def isolated(engine: Engine) -> Iterator[None]:
    """Inside the block global random numbers follow from the seed, and convolutions on a GPU use kernels that repeat
    themselves; random states, thread count, kernels and the current GPU return after it."""
    cuda = list(range(torch.cuda.device_count()))
    states, threads = (random.getstate(), numpy.random.get_state()), torch.get_num_threads()
    kernels: Any = torch.backends.cudnn
    chosen, current = (kernels.benchmark, kernels.deterministic), torch.cuda.current_device() if cuda else None
    with torch.random.fork_rng(devices=cuda):
        kernels.benchmark, kernels.deterministic = False, True
        random.seed(engine.seed)
        numpy.random.seed(engine.seed % 2**32)
        torch.manual_seed(engine.seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])
            torch.set_num_threads(threads)
            kernels.benchmark, kernels.deterministic = chosen
            if current is not None:
                torch.cuda.set_device(current)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM wait for the step to end: the block asks the yielded function whether one came.

    A second Ctrl-C interrupts at once, and so does the end of the block for a signal that nobody asked about. Outside
    the main thread signals are left as they are.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def environment(**more: Any) -> dict[str, Any]:
    """environment.json: versions, code revision, machine, and what the caller adds."""
    return {
        "started_at": now().isoformat(),
        "command": [without_passwords(part) for part in sys.argv],
        "versions": {"python": platform.python_version(), "visfeedback": VERSION, **{p: _version(p) for p in PACKAGES}},
        "git_revision": git_revision(),
        "platform": platform.platform(),
        **more,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def git_revision() -> str:
    """Commit of the source tree this runs from, `+` when it has changes; empty when installed without one."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+" if commit and _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
