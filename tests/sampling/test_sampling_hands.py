"""Copies of the process draw with it: the same images and list, whatever happens to a copy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from visfeedback.backbones.load import Loaded, load_pipeline
from visfeedback.plugins import InputError
from visfeedback.sampling import generate as room
from visfeedback.sampling import hands
from visfeedback.sampling.generate import GenerateSettings, generate, render
from visfeedback.sampling.samples import read_samples
from visfeedback.types.records import Prompt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")

PROMPTS = [Prompt.of(text) for text in ("a red dog", "two blue cups", "sky", "a green hat on a table")]
FAST = GenerateSettings(steps=2, batch_size=2)


@pytest.fixture(scope="module")
def loaded(tiny_sd: Path) -> Loaded:
    return load_pipeline(str(tiny_sd), device="cpu")


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    """As on a machine of three cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_as_many_as_there_are_threads_and_only_on_a_cpu(threads: int) -> None:
    assert [hands.processes(n, torch.device("cpu")) for n in (1, 2, 3, 9)] == [1, 2, 3, threads]
    assert hands.processes(9, torch.device("cuda")) == 1


def test_three_draw_what_one_draws(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows in the same order and the same files; the work was divided; what is there is kept."""
    one = generate(loaded, PROMPTS, 3, 7, tmp_path / "one", FAST)
    mine: list[int] = []

    def counting(pipe: Any, prompts: Sequence[str], *rest: Any, **more: Any) -> list[Image.Image]:
        mine.append(len(prompts))
        time.sleep(0.2)  # so that the copies come to their turn on a machine that is busy
        return render(pipe, prompts, *rest, **more)

    monkeypatch.setattr(room, "render", counting)
    counted: list[int] = []
    assert generate(loaded, PROMPTS, 3, 7, tmp_path / "three", FAST, Counter(counted), processes=3) == one
    assert 0 < sum(mine) < 12
    assert sum(counted) == 12
    assert (tmp_path / "three/samples.jsonl").read_text() == (tmp_path / "one/samples.jsonl").read_text()
    assert files(tmp_path / "three") == files(tmp_path / "one") == ["generate.json", "images", "samples.jsonl"]
    assert torch.get_num_threads() == 3
    drawn = len(mine)
    assert generate(loaded, PROMPTS, 3, 7, tmp_path / "three", FAST, processes=3) == one
    assert len(mine) == drawn


class Counter:
    """A progress display that adds up what it is told."""

    def __init__(self, told: list[int]) -> None:
        self.told = told

    def __call__(self, description: str, total: int) -> Counter:
        assert total == 12
        return self

    def __enter__(self) -> Any:
        return self.told.append

    def __exit__(self, *_: Any) -> None: ...


def test_what_a_copy_leaves_undone_is_done_here(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy raises, another is killed in the middle of its batch: nothing is missing and nothing listed twice."""
    one = generate(loaded, PROMPTS, 3, 7, tmp_path / "one", FAST)
    counted: list[int] = []
    parent, told = os.getpid(), tmp_path / "told"
    told.mkdir()

    def failing(pipe: Any, *rest: Any, **more: Any) -> list[Image.Image]:
        images = render(pipe, *rest, **more)
        if os.getpid() != parent:
            first = not any(told.iterdir())
            (told / str(os.getpid())).touch()
            if first:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no more")
        time.sleep(0.2)
        return images

    monkeypatch.setattr(room, "render", failing)
    assert generate(loaded, PROMPTS, 3, 7, tmp_path / "three", FAST, Counter(counted), processes=3) == one
    assert len(list(told.iterdir())) == 2
    assert sum(counted) == 12
    assert files(tmp_path / "three") == ["generate.json", "images", "samples.jsonl"]


def test_what_goes_wrong_here_ends_all(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> list[Image.Image]:
        raise InputError("this prompt cannot be drawn")

    monkeypatch.setattr(room, "render", failing)
    with pytest.raises(InputError, match="cannot be drawn"):
        generate(loaded, PROMPTS, 3, 7, tmp_path, FAST, processes=3)
    assert torch.get_num_threads() == 3


def test_an_interrupted_run_lists_what_it_has(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its second batch: one list with what all have drawn, no half-written file; the next run ends it."""
    parent, calls = os.getpid(), 0

    def stopping(*args: Any, **more: Any) -> list[Image.Image]:
        nonlocal calls
        calls += 1
        if os.getpid() == parent and calls == 2:
            time.sleep(1)
            (tmp_path / "images" / f".{PROMPTS[0].id}-0.png.0123").touch()  # of a copy that is killed as it writes
            raise KeyboardInterrupt
        return render(*args, **more)

    monkeypatch.setattr(room, "render", stopping)
    with pytest.raises(KeyboardInterrupt):
        generate(loaded, PROMPTS, 3, 7, tmp_path, FAST, processes=3)
    assert len(read_samples(tmp_path)) >= 2
    assert files(tmp_path) == ["generate.json", "images", "samples.jsonl"]
    assert not list((tmp_path / "images").glob(".*"))
    monkeypatch.setattr(room, "render", render)
    assert len(generate(loaded, PROMPTS, 3, 7, tmp_path, FAST)) == 12


def test_without_copies_one_draws_all(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has no room for another process."""

    def full() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    told: list[int] = []
    assert len(generate(loaded, PROMPTS, 3, 7, tmp_path, FAST, Counter(told), processes=3)) == 12
    assert sum(told) == 12


def test_a_copy_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parent, did = os.getpid(), []
    monkeypatch.setattr(hands, "PATIENCE", 0.5)

    def work(process: int, part: int) -> int:
        if os.getpid() != parent:
            time.sleep(600)
        did.append(part)
        time.sleep(0.1)
        return 1

    began = time.monotonic()
    hands.together(2, range(4), work, lambda count: None)
    assert time.monotonic() - began < 60
    assert did == [0, 2]


ORPHANS = """
import os, sys, time, torch
from visfeedback.sampling import hands
def work(process, part):
    print(os.getpid(), flush=True)
    if process == 0:
        time.sleep(1)
        os.kill(os.getpid(), 9)
    time.sleep(600)
    return 1
hands.together(3, range(3), work, lambda count: None)
"""


def test_copies_die_with_a_killed_parent() -> None:
    """Nobody is left who would write into a folder whose lock is free again."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", ORPHANS], env=environment, capture_output=True, text=True, timeout=120,
                          check=False)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    time.sleep(0.5)
    for process in map(int, done.stdout.split()):
        state = Path(f"/proc/{process}/stat")
        assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] in "ZX"
