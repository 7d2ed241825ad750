"""The benchmark of online methods runs, and measures two things that agree."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from visfeedback.diffusion.ddpm import DDPM

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_benchmark_compares_like_with_like(tmp_path):
    """A group of 4 makes 6 pairs. The usual way: of each pair 2 images x 2 branches with a gradient and 2 x 2 of the
    reference, so 24 + 24 evaluations a step; ours 4 with and 4 without a gradient. DDPO: 8 with, against 4 and 4.
    Without the unconditional branch all have one gradient, the whole one is another."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    size = ["--random", "tiny", "--images", "4", "--steps", "2", "--repeats", "1"]
    command = [sys.executable, str(ROOT / "scripts/bench_online.py"), *size, "--out", str(tmp_path / "numbers.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    for task, least in (("d3po", 5.0), ("ddpo", 1.3)):
        rows = numbers[task]
        assert max(rows["loss"].values()) - min(rows["loss"].values()) <= 1e-5
        assert rows["gradient"]["told"]["apart"] < 1e-4 and abs(rows["gradient"]["cosine"]) < 0.99
        assert rows["images_per_second"][f"our {task}"] == 4 / rows["seconds"][f"our {task}"]["median"]
        assert rows["tflop"][f"usual {task}"] / rows["tflop"][f"our {task}"] > least
        assert all(row["peak"] > row["imports"] for row in rows["memory_mib"].values())


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("bench_online", ROOT / "scripts/bench_online.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gradients_that_a_loss_would_hide_are_compared(script):
    """The last of four parts 1% off: the distance is .01 of a length of 2, half a percent of it, and 1e-3 is allowed.
    With 1e-4 instead it is 5e-5. The whole gradient (1, 1, 1, 0) has the cosine 3 / (2 sqrt 3) to the other."""
    one = {"a": torch.ones(2), "b": torch.ones(2)}
    told = {"usual d3po": one, "our d3po": {"b": torch.tensor([1.0, 1.0001]), "a": torch.ones(2)}}
    whole = {"usual d3po": {"a": torch.ones(2), "b": torch.tensor([1.0, 0.0])}}
    found = script.compare_gradients(told, whole)
    assert found["told"] == pytest.approx({"length": 2.0, "apart": 5e-5}, rel=1e-3)
    assert found["cosine"] == pytest.approx(3 / (2 * 3**0.5))
    for wrong in (1.01, math.nan):
        told["our d3po"]["b"][1] = wrong
        with pytest.raises(SystemExit, match=r"the gradients \(told\) disagree, so nothing is timed"):
            script.compare_gradients(told, whole)


def test_the_told_branch_alone_has_a_graph_and_no_value_changes(script):
    """Doubled batch (0, x) through y = w x, guided u + 5 (c - u): the whole derivative to w is that of 5 c - 4 u, and
    without the unconditional branch 5 c. Here u = 3 w and c = 2 w: -2 and 10."""
    from _online_rivals import told_alone

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(1.5))

        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(sample=self.w * x)

    net, values = Net(), []
    for block, expected in ((nullcontext(), -2.0), (told_alone(net), 10.0), (nullcontext(), -2.0)):
        with block:
            u, c = net(torch.tensor([3.0, 2.0])).sample.chunk(2)
        guided = (u + 5 * (c - u)).sum()
        assert torch.autograd.grad(guided, net.w)[0].item() == expected
        values.append(guided.item())
    assert values == [-3.0] * 3


def test_steps_at_which_the_usual_ways_stop_elsewhere_are_refused(script):
    """Of 1000 trailing steps 3 stops are 999, 666 (999 - 333.3) and 332, the usual ways go on to 333; 4 are 250 apart.
    Leading ones are always T // steps apart."""
    from _online_rivals import check_steps

    alphas = torch.linspace(0.99, 0.01, 1000)
    check_steps(DDPM(alphas, spacing="trailing"), 4)
    check_steps(DDPM(alphas, spacing="leading"), 3)
    with pytest.raises(SystemExit, match=r"--steps 3: this model stops at \[999, 666, 332\], and .* step by 333"):
        check_steps(DDPM(alphas, spacing="trailing"), 3)
