"""Pictures, and the scoring engine run on them in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from visfeedback.scoring.engine import Engine
from visfeedback.scoring.settings import ScoreSettings
from visfeedback.scoring.work import Held, Memory, Task, Unit


def pictures(count: int, sizes: Sequence[tuple[int, int]] = ((12, 12), (20, 10), (9, 30))) -> list[Image.Image]:
    """Noise in turns of these (height, width)."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*sizes[n % len(sizes)], 3), np.uint8)) for n in range(count)]


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def tasks(data: Sequence[bytes], prompts: Sequence[tuple[str | None, ...]], count: int) -> list[Task]:
    """Everything is missing of everything, for ``count`` rewards."""
    found = []
    for n, (content, own) in enumerate(zip(data, prompts, strict=True)):
        unit = Unit(n, hashlib.sha256(content).hexdigest(), str(n), own)
        found.append(Task(unit, {r: np.ones(len(own), bool) for r in range(count)}))
    return found


def run(
    rewards: Sequence[Any], data: Sequence[bytes], prompts: Sequence[tuple[str | None, ...]], **more: Any
) -> Memory:
    """Scores of one shard, ``batch_size`` 4 and two threads unless ``settings`` say otherwise."""
    settings = more.pop("settings", ScoreSettings(batch_size=4, workers=2))
    width = max(len(own) for own in prompts)
    memory = Memory([np.full((len(data), width), np.nan, np.float32) for _ in rewards])
    engine = Engine(rewards, settings, **more)
    engine.run([Held(memory, iter(tasks(data, prompts, len(rewards))))], lambda place: lambda: data[int(place)])
    return memory
