"""`scripts/gradient_signal.py`: the share of signal of made-up gradients, and of a real method's."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from visfeedback.plugins import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("gradient_signal", ROOT / "scripts/gradient_signal.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("signal", [0.0, 0.1, 1.0])
def test_the_share_is_that_of_signal_in_power(script, signal):
    """|s|^2 = signal and |noise|^2 = 1 in the mean: the share is signal / (signal + 1), within its interval."""
    generator = torch.Generator().manual_seed(0)
    s = torch.zeros(4000, dtype=torch.float64)
    s[0] = signal**0.5
    found = script.shares(s + torch.randn((12, 4000), generator=generator, dtype=torch.float64) / 4000**0.5)
    assert found["share"] == pytest.approx(signal / (signal + 1), abs=0.02)
    assert found["low"] <= signal / (signal + 1) <= found["high"] < found["low"] + 0.1


def test_equal_gradients_are_all_signal(script):
    found = script.shares(torch.ones((3, 5), dtype=torch.float64))
    assert (found["share"], found["low"], found["high"]) == pytest.approx((1, 1, 1))
    known = {"rounds": 3, "seconds": 1.0, "images": 16.0, "norm": 1.0}
    assert "at least 0;" in script.sentence({**known, "share": 0.8, "low": 0.5, "high": 1.1}), "no negative number"


def test_a_gradient_of_nothing_is_refused(script):
    with pytest.raises(InputError, match="a gradient is zero"):
        script.shares(torch.zeros((3, 5), dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "more"), [
    ("raft", ("--method.best", "1", "--rollout.every", "5", "--optim.batch-size", "2")),
    ("refl", ("--optim.batch-size", "2")),
])  # fmt: skip
def test_images_are_those_of_one_step(script, tiny_sd, monkeypatch, tmp_path, preset, more):
    """Two images a step, however many steps a round is learned from."""
    reward = "compressibility" if preset == "raft" else "shapes_clip"
    flags = ["--model.id", str(tiny_sd), "--rollout.prompts-per-round", "2", "--rollout.per-prompt", "2",
             "--rollout.steps", "2", "--lora.rank", "2", "--reward.name", reward, "--reward.watch", "",
             *more] if preset == "raft" else [
             "--model.id", str(tiny_sd), "--rollout.steps", "2", "--lora.rank", "2", *more]  # fmt: skip
    found = script.ask(ROOT / f"configs/{preset}/shapes_sd.toml", flags, 3, script.Console())
    assert found["images"] == 2


@pytest.mark.slow
def test_rounds_of_a_method_are_compared_and_nothing_is_learned(script, tiny_sd, tmp_path, monkeypatch, capsys):
    """DDPO, 3 gradients of half a round of 4 images: each from a round of its own, by the same weights. Too few are
    refused in a line."""
    preset = str(ROOT / "configs/ddpo/shapes_sd.toml")
    flags = ["--model.id", str(tiny_sd), "--rollout.prompts-per-round", "2", "--rollout.per-prompt", "2",
             "--rollout.steps", "3", "--optim.batch-size", "2", "--optim.accumulate", "1", "--lora.rank", "2",
             "--rollout.times", "0", "1", "--rollout.random-times", "0", "1", "--rollout.no-shared-noise",
             "--reward.name", "compressibility", "--json", str(tmp_path / "found.json")]  # fmt: skip
    seen: list[tuple[int, torch.Tensor]] = []
    ask = script.gradient

    def watched(setup, step):
        seen.append((step, torch.cat([p.detach().flatten().clone() for p in setup.backbone.parameters()])))
        return ask(setup, step)

    monkeypatch.setattr(script, "gradient", watched)
    monkeypatch.setattr(sys, "argv", ["gradient_signal.py", preset, "--rounds", "3", *flags])
    assert script.main() == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["steps_apart"] == 2 and [step for step, _ in seen] == [0, 2, 4]
    assert all(torch.equal(seen[0][1], weights) for _, weights in seen)
    assert found["images"] == 2 and found["low"] <= found["share"] <= found["high"] and found["norm"] > 0
    assert "share of signal in the gradient of 2 images" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["gradient_signal.py", preset, "--rounds", "2", *flags])
    assert script.main() == 2
    assert "--rounds 2: expected 3 or more" in capsys.readouterr().err
