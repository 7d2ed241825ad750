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
    gone, gaps = step - first, max(0, min(last, steps - 1) - first)
    shape = {
        "box": 1.0,
        "fade": 0.5 + 0.5 * math.cos(math.pi * gone / max(1, gaps)),  # 1 at the window's first step, 0 at its last
        "bump": math.sin(math.pi * (gone + 1) / (gaps + 2)) ** 2,  # 0 beside the window, so that one step acts, too
    }
    return settings.floor + (settings.strength - settings.floor) * shape[settings.schedule]


def capped(weights: Sequence[float], cap: float | None) -> list[float]:
    """The weights, scaled down together so that their sum is at most ``cap``."""
    total = sum(weights)
    factor = 1.0 if cap is None or total <= cap else cap / total
    return [weight * factor for weight in weights]
