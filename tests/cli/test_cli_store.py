"""`visfeedback store stats | verify | import | export` through the command's front door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visfeedback import store
from visfeedback.cli import main
from visfeedback.preferences.files import read_pairs
from visfeedback.types.records import Feedback, Prompt, Sample, image_id


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with two images of one prompt, a vote, and a tie."""
    prompt, samples = Prompt.of("red"), []
    for k in range(2):
        image = Image.new("RGB", (8, 8), (200, k, 0))
        image.save(tmp_path / f"{k}.png")
        name = image_id(8, 8, image.tobytes())
        samples.append(Sample(id=name, prompt_id=prompt.id, prompt="red", path=f"{k}.png", width=8, height=8))
    ids = (samples[0].id, samples[1].id)
    url = f"sqlite:///{tmp_path}/prefs.db"
    with store.open(url) as opened:
        opened.add_samples(samples, tmp_path)
        for choice, values in (("b", (0.0, 1.0)), ("tie", (0.5, 0.5))):
            vote = {"judge": "human:ada", "prompt_id": prompt.id, "sample_ids": ids, "sides": (0, 1)}
            opened.add_feedback([Feedback.model_validate({**vote, "choice": choice, "values": values})])
    return url


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["store", *args, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_stats(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "stats", "--store", url)
    assert code == 0
    assert (found["command"], found["feedback"], found["by_choice"]) == ("store stats", 2, {"b": 1, "tie": 1})
    assert (found["left"]["share"], found["left"]["n"], found["ties"]) == (0.0, 1, 0.5)


def test_stats_for_people_are_a_table_on_standard_error(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "stats", "--store", url]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "human:ada 2" in err


def test_verify(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", "--store", url) == (
        0, {"command": "store verify", "store": url, "problems": []}
    )  # fmt: skip
    with store.open(url) as opened:
        Path(next(opened.samples()).path).unlink()
    code, found = run(capsys, "verify", "--store", url)
    assert code == 3
    assert len(found["failed"]) == 1 and found["failed"][0].endswith("is missing")


def test_export_and_import_are_inverse(url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(tmp_path / "out" / "all.jsonl")
    code, found = run(capsys, "export", path, "--store", url)
    assert (code, found["format"], found["sample"], found["feedback"]) == (0, "jsonl", 2, 2)
    copy = f"sqlite:///{tmp_path}/copy.db"
    for added in (2, 0):
        code, found = run(capsys, "import", path, "--store", copy)
        assert (code, found["sample"], found["feedback"]) == (0, added, added)
    with store.open(url) as one, store.open(copy) as two:
        assert list(one.feedback()) == list(two.feedback())


def test_exported_pairs_are_read_by_the_trainer(url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What `store export --format pairs` writes, `read_pairs` reads: P(a) 0 and .5."""
    path = tmp_path / "out" / "pairs.jsonl"
    code, found = run(capsys, "export", str(path), "--store", url, "--format", "pairs")
    assert (code, found["pairs"], found["dropped"]) == (0, 2, {})
    assert [row.p_a for row in read_pairs(path)] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ((), "no action '' for store"),
        (("stat",), "did you mean 'stats'"),
        (("stats", "--store", "prefs.db"), "type sqlite:///prefs.db"),
        (("export", "x.jsonl", "--store", "URL", "--format", "jsonll"), "did you mean 'jsonl'"),
        (("import", "nowhere.jsonl", "--store", "URL"), "no file nowhere.jsonl"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    url: str, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], line: str
) -> None:
    code, found = run(capsys, *(url if part == "URL" else part for part in args))
    assert code == 2
    assert line in found["error"]


def test_looking_at_a_store_that_is_not_there_makes_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for action in ("stats", "verify", "export"):
        args = [action, *(["x.jsonl"] if action == "export" else []), "--store", f"sqlite:///{tmp_path}/typo.db"]
        code, found = run(capsys, *args)
        assert code == 2
        assert "no store at" in found["error"]
    assert list(tmp_path.iterdir()) == []
