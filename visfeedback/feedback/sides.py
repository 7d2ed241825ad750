"""Where each image is shown: at random, but the same every time, so that a side that somebody favours averages out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from visfeedback.types.records import Sample


def sides(samples: Sequence[Sample], seed: int) -> tuple[int, ...]:
    """``sides[i]`` is the position of ``samples[i]``, 0 = left; depends on the seed and the images alone."""
    key = ":".join([str(seed), samples[0].prompt_id, *(sample.id for sample in samples)])
    positions = list(range(len(samples)))
    random.Random(hashlib.sha256(key.encode()).digest()).shuffle(positions)
    return tuple(positions)
