"""`visfeedback evaluate` from the outside: files, keys, repeating, refusing."""

from __future__ import annotations

import json

import pytest
import torch

from visfeedback.cli import main

STEPS = ["--steps", "2", "--per-prompt", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def adapter(tiny_sd, tmp_path_factory):
    """A LoRA that visibly changes the tiny model."""
    from visfeedback.backbones.load import load

    backbone = load(str(tiny_sd), device="cpu")
    backbone.add_lora(rank=2)
    with torch.no_grad():
        for number, parameter in enumerate(backbone.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    folder = tmp_path_factory.mktemp("lora")
    backbone.save_adapter(folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(tiny_sd, adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluate") / "out"
    args = ["evaluate", "--model", str(tiny_sd), "--adapter", str(adapter), "--prompts", "shapes:heldout:7",
            "--judge", "verifier:shapes", "--reward", "shapes_verifier", "--out", str(out), *STEPS]  # fmt: skip
    assert main(args) == 0
    return args, out


def test_files_and_keys_of_the_contract(evaluated, adapter):
    _, out = evaluated
    summary = json.loads((out / "summary.json").read_text())
    assert next(iter(summary)) == "command"
    assert summary["command"].startswith("visfeedback evaluate --model")
    assert {"seed", "seconds", "peak_mib", "judge", "n_prompts", "images_per_prompt", "base", "tuned", "delta",
            "delta_ci95", "win_rate", "win_rate_ci95", "drift", "diversity", "adapter"} <= set(summary)  # fmt: skip
    assert summary["adapter"] == str(adapter)
    assert summary["judge"] == "verifier:shapes"
    assert summary["n_prompts"] == 7
    assert set(summary["base"]["per_category"]) == {
        "single_object", "colors", "two_objects", "counting", "spatial", "non_spatial", "background",
    }  # fmt: skip
    assert "shapes_verifier" in summary["tuned"]["rewards"]
    assert "render_distance" in summary["tuned"]["measures"]
    assert summary["drift"] > 0
    for side in ("base", "tuned"):
        assert len((out / side / "samples.jsonl").read_text().splitlines()) == 14
    assert "data:image/png;base64," in (out / "report.html").read_text()


def test_json_prints_the_summary_and_a_repeat_keeps_the_pictures(evaluated, capsys):
    args, out = evaluated
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/images/*.png")}
    capsys.readouterr()
    assert main([*args, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["delta"] == json.loads((out / "summary.json").read_text())["delta"]
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/images/*.png")}


def test_the_command_in_the_summary_can_be_typed(evaluated):
    """Split by a shell it is the arguments that were given."""
    import shlex

    args, out = evaluated
    assert shlex.split(json.loads((out / "summary.json").read_text())["command"]) == ["visfeedback", *args]


def _error(capsys, *args: str) -> str:
    assert main(["evaluate", *args]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_other_settings_do_not_mix_with_pictures_that_are_there(evaluated, capsys):
    args, _ = evaluated
    assert "seed" in _error(capsys, *args[1:], "--seed", "9")


def test_a_folder_of_other_things_is_left_alone(evaluated, tmp_path, capsys):
    args, out = evaluated
    (tmp_path / "thesis.tex").write_text("precious")
    line = _error(capsys, *[str(tmp_path) if a == str(out) else a for a in args[1:]])
    assert "not empty" in line
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("flag", "value", "says"), [
    ("--judge", "verifyer:shapes", "did you mean 'verifier'"),
    ("--reward", "shapes_verify", "did you mean 'shapes_verifier'"),
    ("--adapter", "nowhere/adapter", "nowhere/adapter"),
    ("--adapter", "", "--adapter is empty"),
    ("--prompts", "missing.txt", "missing.txt"),
    ("--per-prompt", "0", "per-prompt"),
    ("--seed", str(2**64), "--seed = 18446744073709551616; expected less than"),
    ("--prompts", "the meaning of life", "meaning"),
    ("--model", "store:x", "neither a folder nor a file"),
])  # fmt: skip
def test_wrong_input_is_one_line(evaluated, tmp_path, capsys, flag, value, says):
    args, out = evaluated
    changed = [str(tmp_path / "new") if a == str(out) else a for a in args[1:]]
    if flag in changed:
        changed[changed.index(flag) + 1] = value
    else:
        changed += [flag, value]
    assert says in _error(capsys, *changed)
    assert not (tmp_path / "new").exists()


def test_prompts_of_no_world_need_somebody_who_looks(tiny_sd, adapter, tmp_path, capsys):
    line = _error(capsys, "--model", str(tiny_sd), "--adapter", str(adapter), "--prompts", "a cat on a mat",
                  "--out", str(tmp_path / "new"), *STEPS)  # fmt: skip
    assert "--judge" in line
