"""The benchmark runs, checks that both sides agree, and counts what it claims to count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_score.py"


@pytest.mark.slow
def test_bench_at_the_smallest_size(tmp_path: Path) -> None:
    """Every reward of both sides agrees; clipscore and aesthetic share an image tower, so it is counted once."""
    out = tmp_path / "bench.json"
    command = [sys.executable, str(SCRIPT), "--images", "6", "--side", "64", "--repeats", "1", "--memory", "8",
               "--scratch", str(tmp_path), "--out", str(out)]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert set(result["parity"]) == {"clipscore", "aesthetic", "pickscore", "hpsv2", "imagereward"}
    assert max(result["parity"].values()) <= 1e-5
    assert "clipscore: images" in result["tflop"]
    assert "aesthetic: images" not in result["tflop"]
    assert result["tflop"]["ours"] < result["tflop"]["each pair by itself"]
    assert all(value > 0 for value in result["seconds"].values())
    assert result["memory_mib"]["8"]["peak"] >= result["memory_mib"]["8"]["before"] > 0
    assert "of the limit" in done.stdout
