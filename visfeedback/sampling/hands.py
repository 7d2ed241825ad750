"""More hands on a CPU: copies of this process that work beside it, each on a core of its own.

The operations of a small network are too short for several cores to share; whole batches are not. Copies are forked,
as the workers of torch's DataLoader are, so they have the pipeline with whatever adapters it has now, in shared memory.
Linux and CPU only: elsewhere this process does all. May import: types, torch.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")
Advance = Callable[[int], None]

PATIENCE = 60.0
"""seconds, beside ten times the longest part, that copies may take for their last parts before they are given up"""
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)"""
NUMBER = 8  # bytes


def processes(asked: int, device: torch.device) -> int:
    """How many processes can work at once: at most one for each of torch's threads."""
    if sys.platform != "linux" or device.type != "cpu" or torch.cuda.is_initialized():
        return 1
    return max(1, min(asked, torch.get_num_threads()))


def together(count: int, parts: Sequence[Part], work: Callable[[int, Part], int], advance: Advance) -> None:
    """``work(process, part)`` for ``parts``: process p of ``count`` takes every ``count``-th from p on, 0 is this one.

    ``work`` must leave its result in files; it returns how much it did, for ``advance``. A copy that cannot be made,
    fails, dies or hangs leaves parts undone and says nothing: look at what is missing afterwards. What this process
    raises is raised. Nothing is waited for that a copy could take with it: there is no lock between them.
    """
    count = min(count, len(parts))
    if count <= 1:
        for part in parts:
            advance(work(0, part))
        return
    done, told, longest = Tally(count), 0, 0.0

    def share(process: int) -> Iterator[None]:
        for part in parts[process::count]:
            done.add(process, work(process, part))
            yield

    with one_thread(), _copies(range(1, count), share) as copies:
        began = time.monotonic()
        for _ in share(0):
            longest, began = max(longest, time.monotonic() - began), time.monotonic()
            advance(done.sum - told)
            told = done.sum
        deadline = time.monotonic() + PATIENCE + 10 * longest
        while (working := [copy for copy in copies if not _ended(copy)]) and time.monotonic() < deadline:
            time.sleep(0.05)
            advance(done.sum - told)
            told = done.sum
        copies[:] = working
        advance(done.sum - told)


class Tally:
    """A number for each process, in memory that all share; each writes its own, so nobody has to wait."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, NUMBER * count)
        self._count = count

    def add(self, process: int, more: int) -> None:
        self._put(process, self._get(process) + more)

    @property
    def sum(self) -> int:
        return sum(map(self._get, range(self._count)))

    def _get(self, process: int) -> int:
        return int.from_bytes(self._memory[NUMBER * process : NUMBER * (process + 1)])

    def _put(self, process: int, value: int) -> None:
        self._memory[NUMBER * process : NUMBER * (process + 1)] = value.to_bytes(NUMBER)


@contextmanager
def _copies(numbers: Sequence[int], share: Callable[[int], Iterator[None]]) -> Iterator[list[int]]:
    """Process ids of copies at work; gone when the block ends, however it ends. As many as the system allows."""
    parent = os.getpid()
    copies: list[int] = []
    try:
        with warnings.catch_warnings():
            # Other threads do not live on in a copy, which uses nothing that they might hold: it draws and writes.
            warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
            for number in numbers:
                try:
                    copy = os.fork()
                except OSError:  # no more processes, or no memory: those that are there do the work
                    break
                if copy == 0:
                    _live(parent, share, number)
                copies.append(copy)
        yield copies
    finally:
        for copy in copies:
            if not _ended(copy):
                os.kill(copy, signal.SIGKILL)
                os.waitpid(copy, 0)


def _live(parent: int, share: Callable[[int], Iterator[None]], number: int) -> None:
    """All that a copy does; it ends here, and not by way of the parent's exit handlers and half-filled buffers."""
    try:
        _die_with(parent)
        with open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere  # the parent's screen has a lock that a lost thread may hold
            for _ in share(number):
                pass
        os._exit(0)
    except BaseException:  # the parent will do the part and meet the error itself
        os._exit(1)


def _die_with(parent: int) -> None:
    """A copy ends when its parent does, killed or not: nobody else writes into a folder whose lock is free again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when it is over
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it has died already
        os._exit(1)


def _ended(copy: int) -> bool:
    """Whether a copy has ended; it is then taken off the system's list."""
    try:
        return os.waitpid(copy, os.WNOHANG)[0] == copy
    except ChildProcessError:  # taken off already
        return True


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block torch computes on one core. A copy has no threads of torch's pool and must not look for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
