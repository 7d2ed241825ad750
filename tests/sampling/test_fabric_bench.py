"""The benchmark runs, and measures two things that agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_compares_like_with_like(tmp_path: Path) -> None:
    """The port's written-out attention in fp32 and ours draw the same; references have an effect to agree about."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script, out = str(ROOT / "scripts/bench_fabric.py"), str(tmp_path / "numbers.json")
    sizes = ["--random", "tiny", "--steps", "3", "--rounds", "2", "--repeats", "1", "--device", "cpu"]
    command = [sys.executable, script, *sizes, "--out", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    difference = numbers["difference"]
    assert difference["ours - port"] <= 1e-5 * difference["largest latent"]
    assert difference["effect"] > 1000 * difference["ours - port"]
    assert all(len(seconds) == 2 for seconds in numbers["rounds"].values())
    gflop = numbers["gflop"]
    assert gflop["no feedback"] < gflop["full"] < gflop["empty"] <= gflop["port"]
    assert gflop["ours, all rounds"] < gflop["port, all rounds"]
    assert numbers["choices"]["keep=cpu"]["deviation"] == 0
    assert numbers["choices"]["bits=8"]["bank_mib"] < 0.5 * numbers["choices"]["full"]["bank_mib"]
    memory = numbers["memory_mib"]
    assert min(memory["port"], memory["ours"]) > memory["imports"]
