"""One writer in a folder: others hear about it in one line, and a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from visfeedback.plugins import InputError
from visfeedback.types.locks import NAME, only_writer


def test_a_second_writer_is_refused_and_a_later_one_welcome(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        with pytest.raises(InputError, match="being written by another process") as caught, only_writer(tmp_path):
            pytest.fail("two writers in one folder")
        assert "\n" not in str(caught.value)
        with only_writer(tmp_path / "other"):
            pass
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [], "neither the lock's file nor a folder in which nothing was written"


def test_what_was_written_stays_also_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "image.png").write_bytes(b"")
        raise KeyError
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["image.png"]


KILLED = """
import os, sys
from pathlib import Path
from visfeedback.types.locks import only_writer
with only_writer(Path(sys.argv[1])):
    os.kill(os.getpid(), 9)
"""


def test_a_killed_writer_holds_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / NAME).exists()
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_there_is_no_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without write permission (its results may still be read), and a file system that knows no locks."""
    from visfeedback.types import locks

    def unknown(descriptor: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks, "_take", unknown)
    with only_writer(tmp_path):
        pass

    def read_only(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", read_only)
    with only_writer(tmp_path):
        pass
