"""How strongly references act at each denoising step. Pure functions.

The released code acts at steps round(T * start) ... round(T * end), both included, and with a floor elsewhere.
May import: types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from visfeedback.sampling.fabric.settings import FabricSettings


def strength_at(step: int, steps: int, settings: FabricSettings) -> float:
    """Weight of a liked image at step ``step`` (0 = first) of ``steps``, in [0, strength]."""
    if settings.strength == 0:
        return 0.0
    first, last = (round(steps * part) for part in settings.window)
    if not first <= step <= last:
        return settings.floor
    place = (step - first) / max(1, min(last, steps - 1) - first)  # 0 at the window's first step, 1 at its last
    shape = {"box": 1.0, "fade": 0.5 + 0.5 * math.cos(math.pi * place), "bump": math.sin(math.pi * place) ** 2}
    return settings.floor + (settings.strength - settings.floor) * shape[settings.schedule]


def capped(weights: Sequence[float], cap: float | None) -> list[float]:
    """The weights, scaled down together so that their sum is at most ``cap``."""
    total = sum(weights)
    factor = 1.0 if cap is None or total <= cap else cap / total
    return [weight * factor for weight in weights]
