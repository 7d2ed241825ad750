"""The benchmark of online methods runs, and measures two things that agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_benchmark_compares_like_with_like(tmp_path):
    """A group of 4 makes 6 pairs. The usual way: of each pair 2 images x 2 branches with a gradient and 2 x 2 of the
    reference, so 24 + 24 evaluations a step; ours 4 with and 4 without a gradient. DDPO: 8 with, against 4 and 4."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    size = ["--random", "tiny", "--images", "4", "--steps", "2", "--repeats", "1"]
    command = [sys.executable, str(ROOT / "scripts/bench_online.py"), *size, "--out", str(tmp_path / "numbers.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    for task, least in (("d3po", 5.0), ("ddpo", 1.3)):
        rows = numbers[task]
        assert max(rows["loss"].values()) - min(rows["loss"].values()) <= 1e-5
        assert rows["tflop"][f"usual {task}"] / rows["tflop"][f"our {task}"] > least
        assert all(row["peak"] > row["imports"] for row in rows["memory_mib"].values())
