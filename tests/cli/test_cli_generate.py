"""`visfeedback generate` from flags to files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visfeedback import cli
from visfeedback.sampling.samples import read_samples


@pytest.fixture(autouse=True)
def keep_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """`calm` is for whole processes; here it would change the filters of the test run."""
    monkeypatch.setattr("visfeedback.cli.console.calm", lambda *_: None)


def run(*args: object) -> int:
    return cli.main(["generate", *map(str, args)])


def test_images_and_a_summary(tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a red dog\ntwo cups\n")
    call = ("--model", tiny_sd, "--prompts", prompts, "--out", tmp_path / "out", "--steps", 2, "--device", "cpu")
    assert run(*call, "--per-prompt", 2, "--seed", 3, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["command"], answer["images"], answer["made"], answer["n_prompts"]) == ("generate", 4, 4, 2)
    samples = read_samples(tmp_path / "out")
    assert [s.prompt for s in samples] == ["a red dog", "a red dog", "two cups", "two cups"]
    assert run(*call, "--per-prompt", 2, "--seed", 3, "--json") == 0
    assert json.loads(capsys.readouterr().out)["made"] == 0


def test_flags_reach_the_samples(tiny_sd: Path, tmp_path: Path) -> None:
    call = ("--model", tiny_sd, "--prompts", "a red dog", "--out", tmp_path, "--device", "cpu")
    more = ("--steps", 1, "--guidance", 2, "--height", 24, "--width", 32, "--sampler", "euler", "--negative", "blurry")
    assert run(*call, *more, "--dtype", "bf16") == 0
    [sample] = read_samples(tmp_path)
    assert (sample.steps, sample.guidance, sample.sampler) == (1, 2.0, "EulerDiscreteScheduler")
    assert (sample.width, sample.height, sample.negative, sample.model) == (32, 24, "blurry", str(tiny_sd))


def test_wrong_input_is_one_line(tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    good = {"--model": tiny_sd, "--prompts": "a cat", "--out": out, "--device": "cpu", "--steps": 1}
    cases = {
        "--model": ("me/nowhere", "hub cache"),
        "--prompts": ("missing.txt", "no file missing.txt"),
        "--adapter": ("nowhere", "no such file"),
        "--steps": ("0", "--steps = 0"),
        "--batch-size": ("0", "--batch-size = 0"),
        "--config": (tiny_sd, "leave it out"),
        "--per-prompt": ("0", "per-prompt"),
        "--sampler": ("eulr", "did you mean"),
        "--height": ("16", "width together"),
        "--device": ("tpu", "no device"),
        "--guidence": ("3", "did you mean '--guidance'"),
    }
    for flag, (value, words) in cases.items():
        flags = good | {flag: value}
        assert run(*(part for pair in flags.items() for part in pair)) == 2, flag
        line = capsys.readouterr().err
        assert line.startswith("error: "), flag
        assert line.count("\n") == 1
        assert words in line, flag
    assert not out.exists()
