"""``Reward.combine`` that loses nothing: half a batch when memory runs out, single pairs when one spoils the rest.

May import: types, rewards.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.rewards import pick
from visfeedback.types.protocols import Reward

Pairing = Literal["paired", "matrix"]
Failures = dict[tuple[int, int], str]
"""(image row, prompt column) -> why there is no score; (row, row) when paired"""


def combine(reward: Reward, images: Tensor, texts: Tensor | list[Any], pairing: Pairing) -> tuple[np.ndarray, Failures]:
    """Scores, (B,) or (N, P) float32 on the CPU, and what failed.

    Rewards with ``failures`` name what failed themselves; an InputError of theirs means that nothing can work and is
    raised. Of other rewards it is taken to be about one pair, and the others are scored without it.
    """
    try:
        return _halved(reward, images, texts, pairing)
    except InputError:
        if hasattr(reward, "failures"):
            raise
    return _one_by_one(reward, images, texts, pairing)


def _halved(reward: Reward, images: Tensor, texts: Any, pairing: Pairing) -> tuple[np.ndarray, Failures]:
    try:
        found = reward.combine(images, texts, pairing)
        return found.float().cpu().numpy(), dict(getattr(reward, "failures", {}))
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(images) // 2
    scores: list[np.ndarray] = []
    failed: Failures = {}
    for part in (slice(0, half), slice(half, len(images))):
        own = texts[part] if pairing == "paired" else texts
        found, errors = _halved(reward, images[part], own, pairing)
        shift = part.start if pairing == "paired" else 0
        failed |= {(row + part.start, column + shift): error for (row, column), error in errors.items()}
        scores.append(found)
    return np.concatenate(scores), failed


def _one_by_one(reward: Reward, images: Tensor, texts: Any, pairing: Pairing) -> tuple[np.ndarray, Failures]:
    shape = (len(images),) if pairing == "paired" else (len(images), len(texts))
    scores = np.full(shape, np.nan, np.float32)
    failed: Failures = {}
    for index in np.ndindex(shape):
        row, column = index[0], index[-1]
        try:
            scores[index] = float(reward.combine(images[row : row + 1], pick(texts, [column]), "paired"))
        except InputError as error:
            failed[row, column] = " ".join(str(error).split())
    return scores, failed
