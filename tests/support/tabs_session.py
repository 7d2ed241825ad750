"""Somebody who draws rounds without a model: coloured noise that follows from what was asked."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from visfeedback.app.rounds import Ask
from visfeedback.store import Store
from visfeedback.store.core import Drawn
from visfeedback.store.images import inspect
from visfeedback.types.records import Sample


def png(seed: object, side: int = 8) -> bytes:
    """Coloured noise."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(str(seed)).randbytes(3 * side * side)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Noise:
    """Satisfies `app.rounds.Engine`, and remembers what it was asked."""

    store: Store
    title: str = "noise"
    asks: list[Ask] = field(default_factory=list)

    def draw(self, ask: Ask, said: Callable[[str], None]) -> list[Sample]:
        self.asks.append(ask)
        seed = f"{ask.wish.seed} {ask.number} {[past.marks for past in ask.past]}"
        drawn = []
        for place in range(ask.wish.images):
            data = png(f"{seed} {place}")
            picture = inspect(data, "x")
            sample = Sample(id=picture.id, prompt_id=ask.prompt.id, prompt=ask.prompt.text, path="", width=8, height=8)
            drawn.append(Drawn(sample, data, picture))
        self.store.add_drawn(drawn)
        found = self.store.samples_of([one.sample.id for one in drawn])
        return [found[ask.prompt.id, one.sample.id] for one in drawn]
