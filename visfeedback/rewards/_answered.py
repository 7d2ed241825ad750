"""``Reward.combine`` for pairs of which some cannot be scored: the others are, and each that is not says why.

May import: types.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.rewards import pick
from visfeedback.types.protocols import Reward

Failures = dict[tuple[int, int], str]
"""(image row, prompt column) -> why there is no score, one line; (row, row) when paired"""


def answered(
    reward: Reward, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"]
) -> tuple[Tensor, Failures]:
    """Scores, (B,) or (N, P) float32 on the CPU, NaN where there is none, and what failed.

    Rewards with ``failures`` name what failed themselves; an InputError of theirs means that nothing can work and is
    raised. Of other rewards it is taken to be about one pair, and the others are scored without it.
    """
    try:
        return reward.combine(images, texts, pairing).float().cpu(), dict(getattr(reward, "failures", {}))
    except InputError:
        if hasattr(reward, "failures"):
            raise
    return _one_by_one(reward, images, texts, pairing)


def _one_by_one(reward: Reward, images: Tensor, texts: Any, pairing: str) -> tuple[Tensor, Failures]:
    shape = (len(images),) if pairing == "paired" else (len(images), len(texts))
    scores = torch.full(shape, float("nan"))
    failed: Failures = {}
    for index in np.ndindex(shape):
        row, column = index[0], index[-1]
        try:
            scores[index] = float(reward.combine(images[row : row + 1], pick(texts, [column]), "paired"))
        except InputError as error:
            failed[row, column] = " ".join(str(error).split())
    return scores, failed
