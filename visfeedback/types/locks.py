"""One writer in a folder at a time, by a lock that a dead process cannot keep: the system lets go of it.

Works between the processes of one machine, and between machines on file systems that pass locks on. Standard library
only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from visfeedback.plugins import InputError

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    TAKEN = PermissionError
else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    TAKEN = BlockingIOError

NAME = ".lock"
"""the file whose lock it is; gone when the block ends, left behind, without a lock, by a process that was killed"""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside the block no other process, and no other thread, is in such a block for ``folder``.

    The folder is made, and goes again when the block leaves it empty. A folder that nobody can write to, or whose file
    system has no locks, is not guarded. Raises InputError when somebody is writing there.
    """
    folder = Path(folder)
    made = _make(folder)
    descriptor = _open(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # Windows removes no open file
                (folder / NAME).unlink()
            os.close(descriptor)
        with contextlib.suppress(OSError):  # something was written there
            for path in reversed(made):
                path.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make the folder if that can be; which folders were not there before, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    with contextlib.suppress(OSError):  # a file, say: whoever writes here says what is wrong
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def _open(folder: Path) -> int | None:
    """A descriptor that holds the lock, or None where there are no locks."""
    path = folder / NAME
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # nothing can be written here
            return None
        try:
            _take(descriptor)
        except TAKEN:
            os.close(descriptor)
            raise InputError(
                f"{folder} is being written by another process; wait until it has ended, or name another folder"
            ) from None
        except OSError:
            os.close(descriptor)
            return None
        if _still_there(descriptor, path):
            return descriptor
        os.close(descriptor)  # its holder ended, and took the file away, between our two calls


def _still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
