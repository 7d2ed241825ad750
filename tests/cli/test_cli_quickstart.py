"""`visfeedback quickstart` on a tiny random model: the whole river, interrupted and repeated."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from visfeedback import config
from visfeedback.cli import main
from visfeedback.cli.console import Console
from visfeedback.cli.quickstart import QuickstartSettings, River, _left_out, evenly
from visfeedback.training.settings import settings_for
from visfeedback.types.records import Prompt

SMALL = ["--train-prompts", "4", "--train-images", "3", "--tie-band", "0", "--steps", "3", "--batch-size", "4",
         "--test-prompts", "7", "--test-images", "2", "--drawing-steps", "2", "--rank", "2",
         "--train-drawing-steps", "2", "--reward", "shapes_verifier"]  # fmt: skip

KEYS = {"command", "seed", "seconds", "peak_mib", "judge", "n_prompts", "images_per_prompt", "base", "tuned", "delta",
        "delta_ci95", "win_rate", "win_rate_ci95", "drift", "diversity", "adapter"}  # fmt: skip


def _files(out) -> dict[str, int]:
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def quick(tiny_sd, tmp_path_factory):
    """Stopped after the training images, as by Ctrl-C, then run to the end."""
    out = tmp_path_factory.mktemp("quick") / "out"
    args = ["quickstart", "--out", str(out), "--model", str(tiny_sd), "--seed", "3", *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visfeedback.cli.quickstart.River.ask", lambda river: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert main(args) == 130
    drawn = {name: time for name, time in _files(out).items() if name.startswith("images/")}
    assert len(drawn) == 12 + 2
    assert main(args) == 0
    return args, out, drawn


def test_the_folder_of_the_contract(quick):
    _, out, _ = quick
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) >= KEYS
    assert summary["judge"] == "verifier:shapes"
    assert summary["seed"] == 3
    assert summary["n_prompts"] * summary["images_per_prompt"] == 14
    assert (out / "store.db").is_file()
    assert (out / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    html = (out / "report.html").read_text()
    assert summary["command"] in html.replace("&#39;", "'")
    assert "How it learned" in html


def test_the_adapter_loads_in_stock_diffusers(quick, tiny_sd):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.load_lora_weights(str(quick[1] / "adapter"))
    assert pipe.get_active_adapters()


def test_going_on_draws_no_image_twice(quick):
    _, out, drawn = quick
    assert {name: time for name, time in _files(out).items() if name in drawn} == drawn


def test_a_finished_folder_says_so_and_stays_as_it_is(quick, capsys):
    args, out, _ = quick
    before = _files(out)
    capsys.readouterr()
    assert main([*args, "--json"]) == 0
    captured = capsys.readouterr()
    assert "finished already" in captured.err
    assert json.loads(captured.out) == json.loads((out / "summary.json").read_text())
    assert _files(out) == before


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_result(quick, tmp_path):
    """kill -9 as soon as a file of a stage is there; the same command, given again, ends as if never killed."""
    args, undisturbed, _ = quick
    out = tmp_path / "out"
    command = [sys.executable, "-m", "visfeedback", *args]
    command[command.index("--out") + 1] = str(out)
    log = tmp_path / "log"
    for sign in ("images/images/*", "store.db", "training/config.toml", "evaluation/**/*.png"):
        process = subprocess.Popen(command, stderr=log.open("w"))
        while not any(out.glob(sign)) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, f"it ended before {sign} was seen: {log.read_text()}"
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert _result(out) == _result(undisturbed)


def _result(out: Path) -> list[object]:
    """What the folder says and the adapter's bytes; clocks, memory and the folder's own name aside."""
    summary = json.loads((out / "summary.json").read_text())
    of_this_run = {"seconds", "peak_mib", "command", "adapter", "stages"}
    adapter = (out / "adapter" / "pytorch_lora_weights.safetensors").read_bytes()
    return [{key: value for key, value in summary.items() if key not in of_this_run}, adapter]


def test_another_seed_needs_another_folder(quick, capsys):
    args, out, _ = quick
    before = _files(out)
    assert main([*args, "--seed", "4"]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert "seed = 3" in line
    assert _files(out) == before


def test_a_folder_of_other_things_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_result_has_at_least_512_images_a_side():
    settings = QuickstartSettings()
    assert settings.test_prompts * settings.test_images >= 512


def test_evenly_takes_turns_and_follows_the_seed():
    """10 prompts in each of 3 categories: 8 of them are 3 + 3 + 2, no prompt twice."""
    prompts = [Prompt.of(f"{category} {i}", category=category) for category in "abc" for i in range(10)]
    chosen = evenly(prompts, 8, seed=1)
    assert sorted(Counter(p.category for p in chosen).values()) == [2, 3, 3]
    assert len({p.id for p in chosen}) == 8
    assert chosen == evenly(prompts, 8, seed=1)
    assert chosen != evenly(prompts, 8, seed=2)
    assert len(evenly(prompts, 99, seed=0)) == 30


def test_the_preset_says_what_quickstart_trains(tmp_path: Path) -> None:
    """configs/dpo/shapes_sd_quick.toml with the store given by flag is the training stage of the quickstart."""
    preset = config.read_toml(Path(__file__).parents[2] / "configs" / "dpo" / "shapes_sd_quick.toml")
    river = River(QuickstartSettings(out=tmp_path), "", Console())
    preset["data"]["store"] = river.store
    assert settings_for("dpo").model_validate(preset) == river.training_settings()


def test_what_is_left_out_is_counted_in_english() -> None:
    assert _left_out({"tie": 5, "split": 1}) == " (5 ties, 1 split left out)"
    assert _left_out({"tie": 1, "same image": 2}) == " (1 tie, 2 same image left out)"
    assert _left_out({}) == ""
