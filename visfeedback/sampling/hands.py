"""More hands on a CPU: copies of this process that work beside it, each on a core of its own.

The operations of a small network are too short for several cores to share; whole batches are not. Copies are forked,
as the workers of torch's DataLoader are, so they have the pipeline with whatever adapters it has now, in shared memory.
Linux and CPU only: elsewhere this process does all. May import: types, torch.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Part = TypeVar("Part")
Advance = Callable[[int], None]

PATIENCE = 60.0
"""seconds, beside ten times the longest part, that a copy may take for its last part before it is given up"""
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)"""


def processes(asked: int, device: torch.device) -> int:
    """How many processes can work at once: at most one for each of torch's threads."""
    if sys.platform != "linux" or device.type != "cpu" or torch.cuda.is_initialized():
        return 1
    return max(1, min(asked, torch.get_num_threads()))


def together(count: int, parts: Sequence[Part], work: Callable[[int, Part], int], advance: Advance) -> None:
    """``work(process, part)`` for each of ``parts`` by whichever of ``count`` processes is free; 0 is this process.

    ``work`` must leave its result in files; it returns how much it did, for ``advance``. A copy that fails or dies
    leaves its part undone and says nothing: look at what is missing afterwards. What this process raises is raised.
    """
    if min(count, len(parts)) <= 1:
        for part in parts:
            advance(work(0, part))
        return
    fork = multiprocessing.get_context("fork")
    taken, done, told = fork.Value("q", 0), fork.Value("q", 0), 0
    longest = 0.0

    def help_out(process: int) -> Iterator[None]:
        while (number := _count(taken, 1)) < len(parts):
            _count(done, work(process, parts[number]))
            yield

    with one_thread(), _copies(fork, range(1, min(count, len(parts))), help_out) as copies:
        began = time.monotonic()
        for _ in help_out(0):
            longest, began = max(longest, time.monotonic() - began), time.monotonic()
            advance(done.value - told)
            told = done.value
        for copy in copies:
            copy.join(PATIENCE + 10 * longest)
        advance(done.value - told)


@contextmanager
def _copies(fork: Any, numbers: Sequence[int], help_out: Callable[[int], Iterator[None]]) -> Iterator[list[Any]]:
    """Copies of this process at work; gone when the block ends, however it ends."""
    parent = os.getpid()

    def live(number: int) -> None:
        _die_with(parent)
        try:
            for _ in help_out(number):
                pass
        except BaseException:  # the parent will do the part and meet the error itself
            os._exit(1)
        os._exit(0)  # and not by way of the parent's exit handlers and half-filled buffers

    copies = [fork.Process(target=live, args=(number,), daemon=True) for number in numbers]
    try:
        with warnings.catch_warnings():
            # Other threads do not live on in a copy, which touches nothing that they might hold: it draws and writes.
            warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
            for copy in copies:
                copy.start()
        yield copies
    finally:
        for copy in copies:
            if copy.pid is not None:
                copy.kill()
                copy.join()


def _die_with(parent: int) -> None:
    """A copy ends when its parent does, killed or not: nobody else writes into a folder whose lock is free again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when it is over
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it has died already
        os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block torch computes on one core. A copy has no threads of torch's pool and must not look for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _count(counter: Any, more: int) -> int:
    """Add; returns the value before."""
    with counter.get_lock():
        before = counter.value
        counter.value = before + more
    return before
