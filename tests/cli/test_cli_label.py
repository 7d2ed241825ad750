"""`visfeedback label` on real pictures of the shapes world, through the command's front door."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from numpy.random import default_rng
from PIL.Image import Image

from visfeedback import store
from visfeedback.cli import main
from visfeedback.feedback.verifier import VerifierJudge
from visfeedback.shapes.grammar import read
from visfeedback.shapes.renderer import draw_scene, render_image
from visfeedback.types.files import append_jsonl, read_jsonl
from visfeedback.types.records import Feedback, Prompt, Sample, image_id

TEXTS = ("a red circle", "two blue squares", "a green triangle")
DRAWN = ("a red circle", "two blue squares", "a green triangle", "a yellow cross")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three prompts with four images each, one of which shows what the prompt says."""
    folder = tmp_path / "images"
    folder.mkdir()
    for p, text in enumerate(TEXTS):
        for k, shown in enumerate(DRAWN):
            image = render_image(draw_scene(read(shown), default_rng([p, k])))
            image.save(folder / f"{p}-{k}.png")
            prompt = Prompt.of(text)
            name = image_id(64, 64, image.convert("RGB").tobytes())
            append_jsonl(folder / "samples.jsonl", [
                Sample(id=name, prompt_id=prompt.id, prompt=text, path=f"{p}-{k}.png", width=64, height=64)
            ])  # fmt: skip
    return folder


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/prefs.db"


def label(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["label", *args, "--json"])
    return code, json.loads(capsys.readouterr().out)


def answers(url: str) -> list[Feedback]:
    with store.open(url, create=False) as opened:
        return list(opened.feedback())


def test_all_pairs_are_answered_and_right_wins(images: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """3 prompts x C(4,2) = 18 pairs; in each prompt the one right image wins its three pairs."""
    code, found = label(capsys, "--store", url, "--judge", "verifier:shapes", "--images", str(images), "--pairs", "all")
    assert code == 0
    assert (found["samples"], found["pairs"], found["asked"], found["already_answered"]) == (12, 18, 18, 0)
    assert sum(found["choices"].values()) == 18
    with store.open(url) as opened:
        right = {s.prompt_id: s.id for i, s in enumerate(opened.samples()) if i % 4 == i // 4}
        assert opened.verify() == []
    for answer in answers(url):
        if right[answer.prompt_id] in answer.sample_ids:
            assert answer.sample_ids["ab".index(answer.choice or "")] == right[answer.prompt_id]


def test_it_resumes_and_asks_nothing_twice(images: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """5 of 18 random pairs; the same again asks none; 18 asks the 13 that are left; another judge starts afresh."""
    args = ("--store", url, "--judge", "simulated:shapes", "--images")
    for source, n, asked, before in ((images, 5, 5, 0), (images, 5, 0, 5), (images / "samples.jsonl", 18, 13, 5)):
        code, found = label(capsys, *args, str(source), "--n", str(n))
        assert (code, found["asked"], found["already_answered"]) == (0, asked, before)
    assert len({frozenset(answer.sample_ids) for answer in answers(url)}) == 18
    code, found = label(capsys, "--store", url, "--judge", "verifier:shapes", "--images", "store", "--n", "4")
    assert (code, found["asked"]) == (0, 4)
    assert len(answers(url)) == 22


def test_the_flags_of_a_person_reach_it(images: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever finds everything closer than 100 equal and never slips says tie 18 times."""
    args = ("--store", url, "--images", str(images), "--pairs", "all", "--tie-band", "100")
    _, found = label(capsys, *args, "--judge", "simulated:shapes", "--noise", "0")
    assert found["choices"] == {"tie": 18}
    code, found = label(capsys, *args, "--judge", "verifier:shapes", "--noise", "0")
    assert (code, "no 'noise'" in found["error"]) == (2, True)


def test_a_damaged_image_fails_alone(images: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One of 12 files is cut: its prompt has C(3,2) = 3 pairs left, the others 6 each; exit code 3 lists the file."""
    path = images / "1-2.png"
    path.write_bytes(path.read_bytes()[:60])
    code, found = label(capsys, "--store", url, "--judge", "verifier:shapes", "--images", str(images), "--pairs", "all")
    assert code == 3
    assert len(found["failed"]) == 1 and "1-2.png" in found["failed"][0]
    assert (found["samples"], found["asked"]) == (11, 15)
    assert len(answers(url)) == 15


def test_a_prompt_that_the_judge_cannot_read_fails_alone(
    images: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = read_jsonl(images / "samples.jsonl", Sample)
    strange = Prompt.of("the meaning of life")
    append_jsonl(images / "samples.jsonl", [
        s.model_copy(update={"prompt": strange.text, "prompt_id": strange.id}) for s in (first, second)
    ])  # fmt: skip
    code, found = label(capsys, "--store", url, "--judge", "verifier:shapes", "--images", str(images))
    assert (code, found["asked"], len(found["failed"])) == (3, 18, 1)
    assert "the meaning of life" in found["failed"][0]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"--judge": "verifer:shapes"}, "did you mean 'verifier'"),
        ({"--judge": "verifier:moon"}, "type --judge verifier:shapes"),
        ({"--store": "prefs.db"}, "type sqlite:///prefs.db"),
        ({"--images": "nowhere"}, "no file nowhere"),
        ({"--n": "0"}, "--n"),
        ({"--images": "store"}, "no store at"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    images: Path, url: str, capsys: pytest.CaptureFixture[str], change: dict[str, str], line: str, tmp_path: Path
) -> None:
    flags = {"--store": url, "--judge": "verifier:shapes", "--images": str(images)} | change
    code, found = label(capsys, *(part for item in flags.items() for part in item))
    assert code == 2
    assert line in found["error"]
    assert "\n" not in found["error"]
    assert not (tmp_path / "prefs.db").exists(), "nothing half-written"


def test_an_interrupt_keeps_what_was_answered(
    images: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the eighth question: seven answers are in the store, and the next run asks the other eleven."""
    compare, asked = VerifierJudge.compare, []

    def seven_then_ctrl_c(
        self: VerifierJudge, prompt: Prompt, samples: Sequence[Sample], images: Sequence[Image]
    ) -> Feedback:
        asked.append(prompt)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return compare(self, prompt, samples, images)

    args = ("--store", url, "--judge", "verifier:shapes", "--images", str(images))
    with monkeypatch.context() as patch:
        patch.setattr(VerifierJudge, "compare", seven_then_ctrl_c)
        code, _ = label(capsys, *args)
    assert code == 130
    assert len(answers(url)) == 7
    assert label(capsys, *args)[1]["asked"] == 11


@pytest.mark.slow
def test_ctrl_c_on_a_real_process(images: Path, url: str) -> None:
    """SIGINT as a terminal sends it: exit code 130, no traceback, and a store that is whole."""
    command = [sys.executable, "-m", "visfeedback", "label", "--store", url, "--judge", "verifier:shapes", "--images"]
    process = subprocess.Popen([*command, str(images)], stderr=subprocess.PIPE, text=True)
    while not Path(url.removeprefix("sqlite:///")).exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode in (130, 0)  # 0 when it was faster than the signal
    assert subprocess.run([*command, str(images)], capture_output=True).returncode == 0
    assert len(answers(url)) == 18
