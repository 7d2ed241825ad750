"""AdamW, and the learning rate as a pure function of the step: a schedule has no state to save.

To add a schedule: a branch in `learning_rate` and its name in `settings.Optim`.
May import: types, plugins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib.util import find_spec

import torch

from visfeedback.plugins import InputError
from visfeedback.training.settings import Optim


def build_optimizer(parameters: Iterable[torch.nn.Parameter], optim: Optim) -> torch.optim.Optimizer:
    """AdamW over ``parameters``. Raises InputError when 8-bit states are wanted but not installed."""
    more = {"lr": optim.lr, "betas": optim.betas, "eps": optim.epsilon, "weight_decay": optim.weight_decay}
    if not optim.eight_bit:
        return torch.optim.AdamW(parameters, **more)
    if find_spec("bitsandbytes") is None:
        raise InputError("optim.eight_bit needs bitsandbytes: pip install bitsandbytes, or --optim.no-eight-bit")
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    return bitsandbytes.optim.AdamW8bit(parameters, **more)


def learning_rate(optim: Optim, step: int) -> float:
    """Rate of optimizer step ``step`` (0 = first). With warmup w: lr * step / w first, as in the official code."""
    if step < optim.warmup:
        return optim.lr * step / optim.warmup
    done = (step - optim.warmup) / max(1, optim.steps - optim.warmup)  # in [0, 1)
    if optim.schedule == "linear":
        return optim.lr * (1 - done)
    if optim.schedule == "cosine":
        return optim.lr * 0.5 * (1 + math.cos(math.pi * done))
    return optim.lr
