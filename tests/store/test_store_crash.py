"""Acknowledged feedback survives kill -9, and writers in several processes lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from visfeedback import store

WRITER = """
import sys
from visfeedback import store
from visfeedback.types.records import Feedback
url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with store.open(url) as opened:
    for i in range(count):
        record = Feedback(id=f"{name}-{i}", judge=name, sample_ids=("x", "y"), choice="a", values=(1, 0))
        opened.add_feedback([record])
        sys.stdout.write(record.id + "\\n")  # the acknowledgement
        sys.stdout.flush()
"""


def writer(url: str, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, url, name, str(count)], stdout=subprocess.PIPE, text=True)


def acknowledged(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    with process.stdout as stream:
        return [line.strip() for line in stream if line.endswith("\n")]


def test_kill_9_loses_nothing_that_was_acknowledged(url: str) -> None:
    """The writer is killed in mid-flight: what it said is there, and at most the one vote it was writing beyond."""
    process = writer(url, "w", 100_000)
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    said += acknowledged(process)
    assert process.wait() == -signal.SIGKILL
    with store.open(url) as opened:
        found = [record.id for record in opened.feedback()]
        assert found[: len(said)] == said
        assert len(found) - len(said) <= 1
        assert not [p for p in opened.verify() if "refers to sample" not in p]


def test_processes_that_create_and_write_at_once_lose_nothing(url: str) -> None:
    """Four processes race to create one file and then write 40 votes each: 160 arrive, each writer's in order."""
    processes = [writer(url, f"w{i}", 40) for i in range(4)]
    said = [acknowledged(process) for process in processes]
    assert [process.wait() for process in processes] == [0] * 4
    with store.open(url) as opened:
        for i in range(4):
            mine = [record.id for record in opened.feedback(judge=f"w{i}")]
            assert mine == said[i] == [f"w{i}-{k}" for k in range(40)]


def test_threads_share_one_store(opened: store.Store) -> None:
    """The app serves many people from one store object."""
    from concurrent.futures import ThreadPoolExecutor

    from visfeedback.types.records import Feedback

    def work(name: int) -> None:
        for i in range(20):
            opened.add_feedback([Feedback(id=f"{name}-{i}", judge=f"t{name}", sample_ids=("x", "y"), choice="tie")])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len({record.id for record in opened.feedback()}) == 160


@pytest.mark.slow
def test_kill_9_at_many_moments(tmp_path: Path) -> None:
    """The same law ten times, killed after different numbers of votes, with a second writer going on."""
    for turn in range(10):
        url = store.url_of(tmp_path / f"{turn}.db")
        victim, other = writer(url, "victim", 100_000), writer(url, "other", 30)
        assert victim.stdout is not None
        said = [victim.stdout.readline().strip() for _ in range(1 + 7 * turn)]
        os.kill(victim.pid, signal.SIGKILL)
        said += acknowledged(victim)
        victim.wait()
        kept = acknowledged(other)
        assert other.wait() == 0
        with store.open(url) as opened:
            found = {record.id for record in opened.feedback()}
        assert {*said, *kept} <= found
