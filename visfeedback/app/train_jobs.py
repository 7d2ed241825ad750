"""A `visfeedback` command that runs beside the server: started, followed and stopped by what stands in a folder.

The command's process holds a lock on a file of the folder, which the system takes from it when it ends, however that
happens. So another server, or the same one after a restart, knows whether the command still runs; a process id alone
might have gone to somebody else meanwhile.

  job.json (command, process) · answer.json (what the command answered) · log.txt (what it said) · process.lock
May import: plugins, types.files, the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from visfeedback.plugins import InputError
from visfeedback.types.files import write_json

State = Literal["new", "running", "stopping", "finished", "stopped", "failed"]

INTERRUPTED = "interrupted, state saved"
"""what a command answers after Ctrl-C"""
LONGEST_TAIL = 64 << 10  # bytes of the log that are read for its last lines
PATIENCE = 2.0  # seconds; somebody who only looks holds the lock for microseconds

_children: dict[int, subprocess.Popen[bytes]] = {}
"""processes of this server, kept so that ended ones are taken off the system's list"""


class Job:
    """One command at a time in ``folder``; starting it again overwrites what the last one left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.note, self.answer_file = folder / "job.json", folder / "answer.json"
        self.log, self._lock = folder / "log.txt", folder / "process.lock"

    def start(self, arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """Run ``python -m visfeedback ARGUMENTS --json`` in a process group of its own.

        InputError when the last one still runs, or where processes cannot be followed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        held = self._take()
        command = [sys.executable, "-m", "visfeedback", *arguments, "--json"]
        try:
            write_json(self.note, {"command": command[2:-1], "process": None, "stop": 0, "started": time.time()})
            with self.answer_file.open("wb") as answer, self.log.open("wb") as log:
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=answer, stderr=log, start_new_session=True,
                    pass_fds=(held,), env={**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"},
                )  # fmt: skip
        finally:
            os.close(held)  # the child keeps the lock
        _children[child.pid] = child
        write_json(self.note, self._noted() | {"process": child.pid})

    def stop(self) -> None:
        """Ask it to save its state and end, as Ctrl-C does. Asked again: to end now, with its last checkpoint.

        Nothing happens when it is not running.
        """
        noted = self._noted()
        if not self.running or not noted.get("process"):
            return
        write_json(self.note, noted | {"stop": noted["stop"] + 1})
        # SIGINT may be ignored while a program is still loading (a shell's background jobs start like that)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(noted["process"], signal.SIGTERM if noted["stop"] else signal.SIGINT)

    @property
    def running(self) -> bool:
        """Whether the process holds its lock."""
        _bury()
        if not self._lock.is_file():
            return False
        descriptor = os.open(self._lock, os.O_RDWR)
        try:
            return not _locked(descriptor, shared=True)
        finally:
            os.close(descriptor)

    @property
    def state(self) -> State:
        if not self.note.is_file():
            return "new"
        asked = bool(self._noted().get("stop"))
        if self.running:
            return "stopping" if asked else "running"
        answer = self.answer
        if answer and "error" not in answer:
            return "finished"
        return "stopped" if asked or answer.get("error") == INTERRUPTED else "failed"

    @property
    def answer(self) -> dict[str, Any]:
        """What the command answered; empty while it runs and when it was killed."""
        try:
            found = json.loads(self.answer_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def error(self) -> str:
        """One line about why it failed; empty when it did not."""
        if self.state != "failed":
            return ""
        return str(self.answer.get("error") or "it ended without a word: killed, or out of memory")

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return max(0.0, time.time() - float(self._noted().get("started") or time.time()))

    def tail(self, lines: int = 12) -> list[str]:
        """The last lines it said."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - LONGEST_TAIL))
            said = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
            return [line.rstrip() for line in said if line.strip()][-lines:]
        return []

    def _noted(self) -> dict[str, Any]:
        try:
            return json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _take(self) -> int:
        """A descriptor that holds the lock alone."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        until = time.monotonic() + PATIENCE
        while not _locked(descriptor, shared=False):
            if time.monotonic() > until:
                os.close(descriptor)
                raise InputError(f"{self.folder.name} is still running; stop it first")
            time.sleep(0.05)
        return descriptor


def _locked(descriptor: int, *, shared: bool) -> bool:
    """Whether the lock could be had; closing the descriptor gives it back."""
    if sys.platform == "win32":
        raise InputError("training from the page needs Linux or macOS; type: visfeedback train CONFIG.toml --out DIR")
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bury() -> None:
    """Take ended processes of this server off the system's list."""
    for number, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(number, None)
