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
def test_the_benchmark_compares_like_with_like(tmp_path):
    """4 images of a prompt are 6 pairs: of 12 images in a group's pairs 4 are evaluated, a third of the FLOPs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts/bench_dpo.py"), "--random", "tiny", "--prompts", "2", "--batch", "6",
               "--repeats", "1", "--out", str(tmp_path / "numbers.json")]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["parity"]["no table"]["difference"] <= 1e-6
    assert all(row["of errors"] <= 1e-6 for row in numbers["parity"].values())
    counted = numbers["tflop"]
    assert counted["policy alone, grouped"] == pytest.approx(counted["policy alone"] / 3)
    stages = ("vae encode", "text encode", "policy forward + backward", "reference forward")
    assert counted["usual step"] == pytest.approx(sum(counted[name] for name in stages))
    assert {"usual script", "all tables", "moments", "text", "reference"} <= set(numbers["step_seconds"])
    assert all(row["peak"] > row["imports"] for row in numbers["memory_mib"].values())
