"""`visfeedback train` from outside: flags, exit codes, one-line errors, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from visfeedback.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def preset(tiny_sd, tmp_path) -> Path:
    """A preset with two pairs of noise images, in a folder of its own."""
    random = numpy.random.default_rng(0)
    rows = []
    for i in range(2):
        for side in "ab":
            Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=numpy.uint8)).save(tmp_path / f"{i}{side}.png")
        rows.append({"prompt": f"p{i}", "image_a": f"{i}a.png", "image_b": f"{i}b.png", "label": "a"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "preset.toml"
    path.write_text(
        f'[model]\nid = "{tiny_sd}"\n[method]\nname = "dpo"\n[data]\npairs = "{tmp_path / "pairs.jsonl"}"\n'
        "[optim]\nsteps = 2\nbatch_size = 2\n[lora]\nrank = 2\n"
        '[engine]\ndevice = "cpu"\nthreads = 1\n[eval]\ncount = 0\n'
    )
    return path


def train(capsys, *args) -> tuple[int, str, str]:
    code = main(["train", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_is_the_summary(preset, tmp_path, capsys):
    code, out, _ = train(capsys, preset, "--out", tmp_path / "run", "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary == json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["command"] == f"visfeedback train {preset} --out {tmp_path / 'run'}"


def test_flags_lie_over_the_preset(preset, tmp_path, capsys):
    """In any order, before or after the preset, with = or without."""
    code, _, err = train(capsys, "--method.beta", "123", preset, f"--out={tmp_path / 'run'}", "--optim.steps=1")
    assert code == 0, err
    text = (tmp_path / "run/config.toml").read_text()
    assert "beta = 123.0" in text and "steps = 1\n" in text and "rank = 2" in text


@pytest.mark.parametrize("before", [["--data.times", "0.4", "1.0"], ["--data.group"], ["--data.group", "--resume"]])
def test_the_preset_may_stand_behind_any_flag(preset, tmp_path, capsys, before):
    """Behind one with two values, and behind a switch, whose value it is not."""
    code, _, err = train(capsys, *before, preset, "--out", tmp_path / "run", "--data.pairs", "none.jsonl")
    assert (code, err.count("\n")) == (2, 1) and "none.jsonl" in err


def test_the_resolved_config_is_a_preset(preset, tmp_path, capsys):
    """Law: training config.toml of a run gives the run again."""
    assert train(capsys, preset, "--out", tmp_path / "a")[0] == 0
    assert train(capsys, tmp_path / "a/config.toml", "--out", tmp_path / "b")[0] == 0
    name = "adapter/pytorch_lora_weights.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_resume(preset, tmp_path, capsys):
    assert train(capsys, preset, "--out", tmp_path / "run")[0] == 0
    code, _, err = train(capsys, preset, "--out", tmp_path / "run")
    assert code == 2 and "add --resume" in err
    assert train(capsys, preset, "--resume", "--out", tmp_path / "run")[0] == 0
    code, _, err = train(capsys, preset, "--resume", "--out", tmp_path / "run", "--optim.lr", "1")
    assert code == 2 and "optim.lr" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "no preset given"),
        (["nothing.toml", "--out", "OUT"], "no file nothing.toml"),
        (["PRESET"], "missing --out"),
        (["PRESET", "--out", "OUT", "--method.betta", "1"], "did you mean '--method.beta'"),
        (["PRESET", "--out", "OUT", "--method.beta", "much"], "--method.beta"),
        (["PRESET", "--out", "OUT", "--method.beta", "-1"], "expected greater than 0"),
        (["PRESET", "--out", "OUT", "--method.name", "dpoo"], "did you mean 'dpo'"),
        (["PRESET", "--out", "OUT", "--model.id", "nowhere"], "model 'nowhere'"),
        (["PRESET", "--out", "OUT", "--model.adapter", "nowhere"], "adapter 'nowhere'"),
        (["PRESET", "--out", "OUT", "--lora.targets", "to_x"], "no LoRA on to_x"),
        (["PRESET", "--out", "OUT", "--data.store", "sqlite:///x.db"], "both given"),
        (["PRESET", "--out", "OUT", "--data.pairs", "none.jsonl"], "none.jsonl"),
        (["PRESET", "--out", "OUT", "--data.pairs", "", "--data.store", "sqlite:///none.db"], "no store at none.db"),
        (["PRESET", "--out", "OUT", "--data.holdout", "0.01"], "one side empty"),
        (["PRESET", "--out", "OUT", "--optim.eight-bit"], "bitsandbytes"),
        (["PRESET", "--out", "PRESET"], "is a file"),
        (["PRESET", "--out", "OUT", "--model.id", "store:x"], "model 'store:x'"),
        (["PRESET", "--out", "OUT", "--engine.device", "banana"], "no device 'banana'"),
        (["PRESET", "--out", "OUT", "--engine.mixed-precision", "fp16"], "fp16 needs a GPU"),
        (["PRESET", "--out", "OUT", "--optim.betas", "0.9", "1.5"], "--optim.betas: expected two numbers"),
        (["PRESET", "--out", "OUT", "--engine.seed", str(2**64)], "expected less than"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(preset, tmp_path, capsys, args, words):
    args = [str(preset) if a == "PRESET" else str(tmp_path / "run") if a == "OUT" else a for a in args]
    code, out, err = train(capsys, *args)
    assert (code, out) == (2, "")
    assert words in err and err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_preset_with_an_unknown_key(preset, tmp_path, capsys):
    preset.write_text(preset.read_text() + "[optimizer]\nlr = 1\n")
    code, _, err = train(capsys, preset, "--out", tmp_path / "run")
    assert code == 2 and "unknown key optimizer; did you mean 'optim'" in err


def test_the_preset_of_a_program_says_what_to_type(tmp_path, capsys):
    program = ROOT / "configs/loops/dreamsync_shapes.toml"
    code, _, err = train(capsys, program, "--out", tmp_path / "run")
    assert code == 2 and err.endswith(f"type: visfeedback loop {program}\n") and err.count("\n") == 1


def test_a_method_that_is_no_table_is_one_line_or_replaced_by_the_flag(preset, tmp_path, capsys):
    preset.write_text('method = "dpo"\n' + preset.read_text().replace('[method]\nname = "dpo"\n', ""))
    code, _, err = train(capsys, preset, "--out", tmp_path / "run")
    assert code == 2 and "expected [method]" in err
    code, _, err = train(capsys, preset, "--out", tmp_path / "run", "--method.name", "dpo", "--optim.steps", "1")
    assert code == 0, err


def test_a_preset_without_a_method(tmp_path, capsys):
    (tmp_path / "x.toml").write_text('[model]\nid = "x"\n')
    code, _, err = train(capsys, tmp_path / "x.toml", "--out", tmp_path / "run")
    assert code == 2 and 'expected [method] with name = "dpo"' in err


def test_a_damaged_image_is_one_line_and_can_be_mended(preset, tmp_path, capsys):
    good = (tmp_path / "1b.png").read_bytes()
    (tmp_path / "1b.png").write_bytes(good[:60])
    code, _, err = train(capsys, preset, "--out", tmp_path / "run")
    assert code == 2 and "1b.png" in err
    (tmp_path / "1b.png").write_bytes(good)
    assert train(capsys, preset, "--out", tmp_path / "run")[0] == 0


def test_a_missing_image_is_one_line(preset, tmp_path, capsys):
    (tmp_path / "0a.png").unlink()
    code, _, err = train(capsys, preset, "--out", tmp_path / "run")
    assert code == 2 and "0a.png" in err and not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line(preset, tmp_path, capsys, monkeypatch):
    import errno

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = train(capsys, preset, "--out", tmp_path / "run")
    assert code == 2 and "No space left on device" in err
    monkeypatch.undo()
    assert train(capsys, preset, "--out", tmp_path / "run")[0] == 0, "nothing half-written stands in the way"


def test_help_needs_no_preset(capsys):
    code, out, _ = train(capsys, "--help")
    assert code == 0 and "--method.beta" in out and "--engine.cache.draws" in out


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(preset, tmp_path):
    """The mean over 2 processes of the mean over 1 pair is that over 2 pairs; a run goes on only as it began."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    script = [str(ROOT / "scripts/train.py"), str(preset)]
    two, one = tmp_path / "two", tmp_path / "one"

    def launch(*command):
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)

    done = launch(*torchrun, *script, "--out", str(two), "--optim.batch-size", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    assert {p.name for p in (two / "checkpoints/step-2").glob("random-*")} == {"random-0.pt", "random-1.pt"}
    assert launch(sys.executable, *script, "--out", str(one)).returncode == 0
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (two, one)]
    for a, b in zip(*rows, strict=True):
        assert a["images_seen"] == b["images_seen"] == 4 * a["step"]
        for name in ("loss", "grad_norm", "error_winner", "error_loser"):
            assert a[name] == pytest.approx(b[name], rel=1e-3), name
    alone = launch(sys.executable, *script, "--out", str(two), "--optim.batch-size", "1", "--resume")
    assert alone.returncode == 2 and "started with 2 processes" in alone.stderr
