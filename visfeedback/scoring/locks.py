"""Locks that a dead process cannot keep: flock on a file, released by the system whatever happens to the holder.

Work between the processes of one machine, and between machines on file systems that pass flock on (NFS since Linux
2.6.12 does). Windows has no flock, nor lets anybody rename what another has open: scoring to a file is not for it.
May import: types.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from visfeedback.plugins import InputError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None


def open_locked(path: Path, *, wait: bool, shared: bool = False) -> int | None:
    """A descriptor of ``path`` (made when it is not there) that holds its lock; None when somebody else does.

    With ``wait`` it is never None for that reason, only when the folder has gone. Raises InputError without flock.
    """
    if fcntl is None:
        raise InputError(
            "this system has no flock, which keeps scores safe from two processes at once; use Linux, macOS or WSL, or "
            "score in Python: vf.score(images, prompts, rewards=[...])"
        )
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        if still_named(descriptor, path):
            return descriptor
        os.close(descriptor)  # removed while we waited: the next file of this name is another one


def still_named(descriptor: int, path: Path) -> bool:
    """Whether ``path`` is the very file that is open here, not a later one of the same name."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of ``path``, whose folder exists, and hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_locked(path, wait=True)
    if descriptor is None:  # the folder went between the two lines: whoever merged removed it
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(path, wait=True)
    assert descriptor is not None
    try:
        yield
    finally:
        os.close(descriptor)
