"""`scripts/compare_methods.py` on tiny networks: it trains, judges, goes on, and refuses what cannot work in a line."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pytest

from visfeedback.cli.console import Console
from visfeedback.config import to_toml
from visfeedback.training.run import Run, check_folder
from visfeedback.training.settings import Engine

ROOT = Path(__file__).parents[2]
SMALL = ["--prompts", "shapes:heldout:7", "--along-prompts", "shapes:heldout:7", "--along", "2", "--reward"]


@pytest.fixture
def compare(monkeypatch, tmp_path, capsys):
    """``compare("--seeds", "1")`` -> exit code and what was said."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    spec = importlib.util.spec_from_file_location("compare_methods", ROOT / "scripts/compare_methods.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*args: str, out: Path = tmp_path / "out") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compare_methods.py", "--out", str(out), *args])
        code = script.main()
        return code, "".join(capsys.readouterr())

    return run


def flags(tiny_sd: Path, steps: int = 4) -> str:
    return shlex.join([
        "--model.id", str(tiny_sd), "--optim.steps", str(steps), "--optim.batch-size", "2", "--lora.rank", "2",
        "--rollout.steps", "2", "--rollout.prompts-per-round", "2", "--rollout.per-prompt", "2", "--rollout.every", "1",
        "--eval.count", "0", "--reward.name", "compressibility", "--reward.watch", "shapes_verifier",
    ])  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_methods_are_trained_judged_and_not_again(tiny_sd, tmp_path, compare):
    """4 steps with a stop at 2 and a round of 4 images each; the second call only reads, wherever the folder is now."""
    one, same = ["--variant", "best-of", "raft", flags(tiny_sd)], ["--per-prompt", "2", *SMALL]
    code, said = compare("--seeds", "1", *one, *same)
    out = tmp_path / "out"
    assert code == 0, said + (out / "best-of-1/log.txt").read_text()
    summary = json.loads((out / "summary.json").read_text())
    found = summary["methods"]["best-of"]
    assert found["seeds"] == [1] and found["n_images"] == 14 and found["reward"] == "compressibility"
    points = found["per_seed"]["1"]["points"]
    assert [(p["step"], p["images"]) for p in points] == [(0, 0), (2, 8), (4, 16)]
    assert points[0]["drift"] == 0 < points[1]["drift"] and 0 < points[1]["seconds"] < points[2]["seconds"]
    assert "| best-of | compressibility |" in (out / "table.md").read_text()
    assert "best-of, seed 1" in (out / "report.html").read_text()
    assert all((out / name).read_text().startswith("<svg xmlns") for name in ("curve_images.svg", "gaming.svg"))
    drawn = list((out / "base").rglob("*.png"))
    assert len(drawn) == 14 and len(list((out / "best-of-1/along/step-2/tuned").rglob("*.png"))) == 7
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.suffix in (".png", ".safetensors")}
    assert compare("--seeds", "1", *one, *same)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    code, said = compare("--seeds", "1", "--variant", "best-of", "raft", flags(tiny_sd, 5), *same)
    assert code == 2 and "best-of-1 was made with flags" in said
    code, said = compare("--seeds", "1", *one, "--per-prompt", "1", *SMALL)
    assert code == 2 and "was begun with --per-prompt 2, now it is 1" in said
    out.rename(tmp_path / "elsewhere")
    code, said = compare("--report", "--seeds", "1", *one, *same, out=tmp_path / "elsewhere")
    assert code == 0 and json.loads((tmp_path / "elsewhere/summary.json").read_text())["methods"] == summary["methods"]
    failing = ["--variant", "nowhere", "raft", f"{flags(tiny_sd)} --model.id {tmp_path / 'nothing'}"]
    code, said = compare("--seeds", "1", *one, *failing, *same, out=tmp_path / "elsewhere")
    assert code == 3 and "nowhere-1 failed: " in said and "nothing" in said
    assert json.loads((tmp_path / "elsewhere/summary.json").read_text())["failed"].keys() == {"nowhere-1"}


@pytest.mark.parametrize(
    ("there", "goes_on"), [((), False), (("cache/latents.bin",), False), (("environment.json",), True),
                           (("environment.json", "config.toml"), True)],
)  # fmt: skip
def test_a_training_that_was_killed_at_its_start_goes_on(compare, tmp_path, monkeypatch, tiny_sd, there, goes_on):
    """A run writes environment.json, then config.toml. `train` takes a folder with nothing but a cache as new, and one
    with either file with --resume alone: what this script says must be what that command accepts."""
    import _contestants

    said: list[str] = []
    monkeypatch.setattr(_contestants.Job, "command", lambda self, *words: said.extend(map(str, words)))
    options = argparse.Namespace(out=tmp_path, along=0)
    job = _contestants.Job(_contestants.entrant("one", "raft", flags(tiny_sd)), 1, options, Console())
    settings = job.entrant.settings().model_copy(update={"engine": Engine(seed=1)})
    for name in there:
        file = job.folder / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}" if name == "environment.json" else to_toml(settings) if name == "config.toml" else "")
    job.train()
    assert said[:2] == ["train", str(job.entrant.preset)] and ("--resume" in said) is goes_on
    check_folder(Run(job.folder / "run"), settings, "--resume" in said)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "no methods given; expected --methods with some of"),
        (["--methods", "dpoo"], "no method 'dpoo'; did you mean"),
        (["--methods", "raft", "raft"], "raft is named twice"),
        (["--methods", "raft", "--seeds", "1", "1"], "expected different numbers"),
        (["--methods", "raft", "--prompts", "a red circle", "--along", "0"], "nobody can say whether an image of"),
        (["--methods", "raft", "--prompts", "shapes:heldout:7"], "are not all of --prompts shapes:heldout:7"),
        (["--methods", "raft", "--per-prompt", "0"], "--per-prompt 0: expected 1 or more"),
        (["--variant", "a b", "raft", ""], "'a b' cannot name a contestant"),
        (["--variant", "x", "raft", "--optim.stepss 3"], "--optim.stepss"),
        (["--variant", "x", "nowhere.toml", ""], "nowhere.toml"),
        (["--methods", "raft", "--report"], "nothing is finished in"),
    ],
)
def test_wrong_input_is_one_line(compare, tmp_path, args, words):
    code, said = compare(*args)
    assert code == 2 and said.startswith("error: ") and words in said and said.count("\n") == 1
    assert not list((tmp_path / "out").glob("*-*"))
