"""What is measured of the images of a round, besides what the user says. May import: everything but app and cli."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from visfeedback.evaluation.statistics import spread
from visfeedback.loops._journal import Journal
from visfeedback.loops._users import Features
from visfeedback.sampling.fabric.references import fitted
from visfeedback.types.records import Prompt

Measured = dict[str, float | None]


def measure(
    images: Sequence[Image.Image], prompt: Prompt, number: int, out: Path, journal: Journal, features: Features,
    target: Image.Image | None,
) -> Measured:  # fmt: skip
    """Diversity twice, likeness to what the fabric arm liked and disliked in the rounds before, and how far the hidden
    image is, in pixels: a number that the features by which it is chosen do not see."""
    mine, pixels = features(images), np.stack([_unit(image) for image in images])
    before = [journal.get(prompt.id, "fabric", earlier) for earlier in range(number)]
    found: Measured = {"diversity": spread(pixels), "alike": _alike(mine)}
    for side in ("liked", "disliked"):
        names = [name for row in before if row for name in getattr(row, side)]
        theirs = features([opened(out / name) for name in names]) if names else None
        found[f"to_{side}"] = None if theirs is None else float((mine @ theirs.T).mean())
    if target is not None:
        goal = _unit(fitted(target, *images[0].size))
        found["from_target"] = float(np.sqrt(((pixels - goal) ** 2).mean(axis=(1, 2, 3))).mean())
    return found


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _unit(image: Image.Image) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    return np.asarray(image.convert("RGB"), np.float32) / 255


def _alike(vectors: np.ndarray) -> float | None:
    """Mean cosine over all pairs of unit ``vectors`` (K, D); None for fewer than two."""
    left, right = np.triu_indices(len(vectors), k=1)
    return float((vectors[left] * vectors[right]).sum(axis=1).mean()) if len(left) else None
