"""Diffusion-DPO learns in the shapes world: a taste that no prompt mentions shows in pictures of unseen prompts."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
import torch

from visfeedback import shapes
from visfeedback.backbones.load import load_pipeline
from visfeedback.evaluation.statistics import bootstrap
from visfeedback.sampling.generate import GenerateSettings, generate
from visfeedback.sampling.samples import open_image
from visfeedback.shapes.simulated import taste_of
from visfeedback.training.fit import fit
from visfeedback.training.settings import settings_for

DRAWING = GenerateSettings(steps=10, batch_size=32)


@pytest.fixture
def one_thread():
    """Threads that wait for each other on a busy machine would make this many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def darkness(folder, samples) -> list[float]:
    return [taste_of(open_image(sample, folder), {"dark": 1.0}) for sample in samples]


def prompts(split: str, count: int):
    """Prompts that leave the background open."""
    return [p for p in shapes.prompts(split) if p.category in ("two_objects", "colors")][:count]


def write_pairs(folder, samples) -> int:
    """All pairs of a prompt of which one is clearly darker."""
    dark = dict(zip([s.id for s in samples], darkness(folder, samples), strict=True))
    rows = []
    for a, b in combinations(samples, 2):
        if a.prompt == b.prompt and abs(dark[a.id] - dark[b.id]) > 0.2:
            label = "a" if dark[a.id] > dark[b.id] else "b"
            rows.append({"prompt": a.prompt, "image_a": a.path, "image_b": b.path, "label": label})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


@pytest.mark.learning
def test_a_taste_for_dark_backgrounds_is_learned(tmp_path, one_thread):
    """160 pictures of 40 prompts, every pair says which is darker; then 40 unseen prompts, same seeds on both sides.

    The 95% interval of the gain in darkness, over prompts, must lie above 0.1 (a tenth of all backgrounds).
    """
    drawn = generate(load_pipeline("shapes:sd"), prompts("train", 40), 4, 0, tmp_path / "images", DRAWING)
    assert write_pairs(tmp_path / "images", drawn) > 40
    fit(
        settings_for("dpo").model_validate({
            "method": {"name": "dpo", "beta": 60.0},
            "data": {"pairs": str(tmp_path / "images/pairs.jsonl"), "group": True, "times": (0.4, 1.0)},
            "optim": {"lr": 1e-3, "steps": 120, "batch_size": 24, "schedule": "cosine", "warmup": 5},
            "engine": {"threads": 1, "device": "cpu", "checkpoint_every": 0, "drift_every": 0},
            "eval": {"count": 0},
        }),
        tmp_path / "run",
    )  # fmt: skip
    sides = []
    for name, adapter in (("base", ""), ("tuned", str(tmp_path / "run/adapter"))):
        loaded = load_pipeline("shapes:sd", adapter=adapter)
        samples = generate(loaded, prompts("heldout", 40), 1, 1, tmp_path / name, DRAWING)
        sides.append(darkness(tmp_path / name, samples))
    gain = bootstrap([tuned - base for base, tuned in zip(*sides, strict=True)], [s.prompt_id for s in samples])
    assert gain.low > 0.1, gain
