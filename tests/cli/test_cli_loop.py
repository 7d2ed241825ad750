"""`visfeedback loop` from a preset to a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visfeedback import cli

PRESET = Path(__file__).parents[2] / "configs" / "loops" / "fabric_rounds_shapes.toml"


@pytest.fixture(autouse=True)
def keep_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visfeedback.cli.console.calm", lambda *_: None)


def run(*args: object) -> int:
    return cli.main(["loop", *map(str, args)])


def test_flags_go_over_the_preset(tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The window's end is the preset's, the rest is said by flags; the same with --resume does nothing again."""
    flags = ("--model.id", tiny_sd, "--model.device", "cpu", "--loop.rounds", 2, "--loop.images", 2,
             "--generate.steps", 1, "--data.prompts", "a circle", "--fabric.strength", 0.3, "--out", tmp_path / "out",
             "--loop.arms", "fabric", "none")  # fmt: skip
    assert run(PRESET, *flags, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rounds"] == 2
    assert answer["command"].startswith("visfeedback loop")
    assert set(answer["arms"]) == {"fabric", "none", "best_of_n"}
    text = (tmp_path / "out" / "config.toml").read_text()
    assert "strength = 0.3" in text
    assert run(PRESET, *flags) == 2
    assert "--resume" in capsys.readouterr().err
    written = (tmp_path / "out" / "rounds.jsonl").stat().st_mtime_ns
    assert run(PRESET, *flags, "--resume") == 0
    assert (tmp_path / "out" / "rounds.jsonl").stat().st_mtime_ns == written


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd, other, neither = (tmp_path / f"{name}.toml" for name in ("odd", "other", "neither"))
    neither.write_text("[model]\n")
    odd.write_text("[loop]\nname = 'fabric_roundz'\n")
    other.write_text("[method]\nname = 'dpo'\n")
    out = tmp_path / "out"
    for call, words in (
        ((), "no preset given"),
        (("nowhere.toml", "--out", out), "no file nowhere.toml"),
        ((odd, "--out", out), "did you mean 'fabric_rounds'"),
        ((other, "--out", out), f"is a single training; type: visfeedback train {other}"),
        ((neither, "--out", out), "names no loop"),
        ((PRESET,), "out"),
        ((PRESET, "--out", out, "--fabric.strength", 3), "strength"),
        ((PRESET, "--out", out, "--loop.roundz", 3), "did you mean"),
        ((PRESET, "--out", out, "--data.prompts", "nowhere.txt"), "no file nowhere.txt"),
    ):
        assert run(*call) == 2, call
        line = capsys.readouterr().err
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        assert words in line
    assert not out.exists()
