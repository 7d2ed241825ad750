"""``Reward.combine`` that loses nothing: half a batch when memory runs out, single pairs when one spoils the rest.

May import: types, rewards.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visfeedback.rewards._answered import Failures, answered
from visfeedback.types.protocols import Reward

Pairing = Literal["paired", "matrix"]


def combine(reward: Reward, images: Tensor, texts: Tensor | list[Any], pairing: Pairing) -> tuple[np.ndarray, Failures]:
    """Scores, (B,) or (N, P) float32 on the CPU, and what failed. Raises InputError when nothing can work at all."""
    try:
        found, failed = answered(reward, images, texts, pairing)
        return found.numpy(), failed
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(images) // 2
    scores: list[np.ndarray] = []
    failed: Failures = {}
    for part in (slice(0, half), slice(half, len(images))):
        own = texts[part] if pairing == "paired" else texts
        found, errors = combine(reward, images[part], own, pairing)
        shift = part.start if pairing == "paired" else 0
        failed |= {(row + part.start, column + shift): error for (row, column), error in errors.items()}
        scores.append(found)
    return np.concatenate(scores), failed
