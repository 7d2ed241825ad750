"""Journals survive what kills their writer, and a shard has one owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from visfeedback.scoring.journal import Entries, Journal, line_of, pack, unpack
from visfeedback.scoring.locks import open_locked
from visfeedback.scoring.work import Unit

UNIT = Unit(12, "a" * 64, "x", ("p", "q"))


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_scores_are_exact() -> None:
    values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    assert np.array_equal(unpack(pack(values)), values)


def test_what_was_written_is_read_and_later_lines_win(tmp_path: Path) -> None:
    """A score fills the gap beside an earlier one and removes the error that stood there."""
    path = tmp_path / "000001.jsonl"
    with Journal.claim(path, first=10) as journal:
        journal.add(UNIT, 0, row(1, np.nan), {1: "bad luck"})
        journal.note(UNIT, "two frames")
        assert journal.scored == 1
    with Journal.claim(path, first=10) as journal:
        assert journal.entries.errors[2, 0] == {1: "bad luck"}
        assert journal.entries.missing(2, 0, 2).tolist() == [False, True]
        assert journal.entries.missing(2, 1, 2).tolist() == [True, True]
        assert not journal.entries.done
        journal.add(UNIT, 0, row(np.nan, 2), {})
        journal.finish()
    found = Entries().read(path)
    assert found.scores[2, 0].tolist() == [1, 2]
    assert found.errors[2, 0] == {}
    assert found.notes == {2: "two frames"}
    assert found.done


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "000000.jsonl"
    with Journal.claim(path, first=12) as journal:
        journal.add(UNIT, 0, row(1, 2), {})
    with path.open("a") as file:
        file.write('{"u": 0, "r": 1, "s": "AAA')
    assert (0, 1) not in Entries().read(path).scores
    with Journal.claim(path, first=12) as journal:
        journal.add(UNIT, 1, row(3, 4), {})
    assert Entries().read(path).scores[0, 1].tolist() == [3, 4]


def test_a_shard_has_one_owner(tmp_path: Path) -> None:
    path = tmp_path / "000000.jsonl"
    with Journal.claim(path, first=0) as journal:
        assert Journal.claim(path, first=0) is None
        journal.finish()
        again = Journal.claim(path, first=0)
        assert again is not None
        assert again.entries.done
        again.close()


def test_a_killed_owner_leaves_its_shard_and_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "000000.jsonl"
    code = (
        "import sys, time, numpy as np\n"
        "from pathlib import Path\n"
        "from visfeedback.scoring.journal import Journal\n"
        "from visfeedback.scoring.work import Unit\n"
        "journal = Journal.claim(Path(sys.argv[1]), first=0)\n"
        "journal.add(Unit(0, 'a', 'x', ('p',)), 0, np.ones(1, np.float32), {})\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert Journal.claim(path, first=0) is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with Journal.claim(path, first=0) as journal:
        assert journal.entries.scores[0, 0].tolist() == [1]


def test_locks_of_a_folder_that_went(tmp_path: Path) -> None:
    assert open_locked(tmp_path / "gone" / "lock", wait=True) is None
    path = tmp_path / "lock"
    first = open_locked(path, wait=True, shared=True)
    second = open_locked(path, wait=True, shared=True)
    assert open_locked(path, wait=False) is None
    os.close(first)
    os.close(second)
    third = open_locked(path, wait=False)
    os.close(third)


def test_a_line_that_a_power_cut_spoilt_is_computed_again(tmp_path: Path) -> None:
    """Zero bytes, halves of two lines: the good lines around them count."""
    good = line_of(0, 0, row(1.0))
    bad = ["\0\0\0\n", good[:20] + good, '{"u": 1, "r": 0, "s": "AAA"}\n', '{"u": 1}\n', "[1]\n", "7\n"]
    path = tmp_path / "000000.jsonl"
    path.write_text("".join(bad) + good + line_of(2, 0, row(3.0)))
    found = Entries().read(path)
    assert {key: scores.tolist() for key, scores in found.scores.items()} == {(0, 0): [1.0], (2, 0): [3.0]}
