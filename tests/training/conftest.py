"""A toy training task: noise images of 16 px, prompts that share images, and settings that finish in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from toy_training import Brightness, toy_settings

from visfeedback import rewards

LABELS = ("a", "b", 0.9, "a", "tie", 0.2)


def write_pairs(folder: Path, labels: tuple = LABELS, size: int = 16) -> Path:
    """`pairs.jsonl`: row i is prompt i mod 3 with images ia.png, ib.png; the last shares an image of the first."""
    random = numpy.random.default_rng(0)
    rows = []
    for i, label in enumerate(labels):
        for side in "ab":
            pixels = random.integers(0, 255, (size, size, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(folder / f"{i}{side}.png")
        rows.append({"prompt": f"prompt {i % 3}", "image_a": f"{i}a.png", "image_b": f"{i}b.png", "label": label})
    rows[-1]["image_a"] = "0a.png"
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def settings(tiny_sd, pairs_file):
    """Builds settings: ``settings(optim={"steps": 2})`` changes what differs from the toy's."""
    from visfeedback.config import merge
    from visfeedback.training.settings import settings_for

    def build(**changes: Any):
        base = {
            "model": {"id": str(tiny_sd)},
            "method": {"name": "dpo"},
            "data": {"pairs": str(pairs_file)},
            "optim": {"steps": 4, "batch_size": 2, "lr": 1e-3},
            "lora": {"rank": 2},
            "engine": {"device": "cpu", "threads": 1, "checkpoint_every": 2, "drift_every": 0},
            "eval": {"count": 0},
        }
        return settings_for("dpo").model_validate(merge(base, changes))

    return build


@pytest.fixture
def reward(monkeypatch) -> Brightness:
    """What every name of a reward means in these tests."""
    one = Brightness()
    monkeypatch.setattr(rewards, "load", lambda name, device="cpu", dtype="fp32": one)
    return one


@pytest.fixture
def online(tiny_sd, reward):
    """``online("ddpo", optim={"steps": 2})``: settings of a run that finishes in a second or two."""

    def build(name: str, **changes):
        return toy_settings(name, tiny_sd, **changes)

    return build
