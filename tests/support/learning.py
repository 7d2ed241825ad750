"""Train a method on the shapes model for half a minute with a taste for dark backgrounds, and look at other prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from visfeedback import shapes
from visfeedback.backbones.load import load_pipeline
from visfeedback.config import merge
from visfeedback.evaluation.statistics import Estimate, bootstrap
from visfeedback.sampling.generate import GenerateSettings, generate
from visfeedback.sampling.samples import open_image
from visfeedback.training.fit import fit
from visfeedback.training.settings import settings_for

DRAWING = GenerateSettings(steps=8, batch_size=32)
OPEN = ("two_objects", "colors")  # categories whose prompts leave the background open


def darkness_gain(out: Path, method: dict[str, Any], **sections: Any) -> Estimate:
    """How much darker the border is after training than before on 32 held-out prompts, same seeds; in [-1, 1]."""
    texts = tuple(prompt.text for prompt in shapes.prompts("train") if prompt.category in OPEN)[:64]
    base = {
        "method": method, "reward": {"name": "tests.support.dark_taste"},
        "rollout": {"prompts": texts, "steps": 8, "eta": 0.0},
        "optim": {"lr": 1e-3, "schedule": "cosine"}, "data": {"times": (0.4, 1.0)}, "eval": {"count": 0},
        "engine": {"threads": 1, "device": "cpu", "checkpoint_every": 0, "drift_every": 0},
    }  # fmt: skip
    before = torch.get_num_threads()
    try:
        kind = settings_for(method["name"])
        if kind.model_fields["method"].annotation.eats == "prompts":  # pyright: ignore[reportOptionalMemberAccess]
            base.pop("data")
        fit(kind.model_validate(merge(base, sections)), out / "run")
    finally:
        torch.set_num_threads(before)
    held_out = [prompt for prompt in shapes.prompts("heldout") if prompt.category in OPEN][:32]
    sides = []
    for name, adapter in (("base", ""), ("tuned", str(out / "run/adapter"))):
        loaded = load_pipeline("shapes:sd", adapter=adapter)
        samples = generate(loaded, held_out, 1, 1, out / name, DRAWING)
        sides.append([_darkness(np.asarray(open_image(sample, out / name))) for sample in samples])
    return bootstrap(np.subtract(sides[1], sides[0]), [prompt.id for prompt in held_out])


def _darkness(pixels: np.ndarray) -> float:
    """1 minus the median brightness of the picture's outermost pixels: another reading than the reward's mean."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return 1 - float(np.median(edge)) / 255
