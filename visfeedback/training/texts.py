"""Prompts of a round, as the network reads them.

May import: types, sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from visfeedback.sampling.render import evaluating
from visfeedback.types.batches import Condition

TEXTS_AT_ONCE = 16


class Texts:
    """Prompts as the network reads them, each encoded once, on the CPU."""

    def __init__(self, backbone: Any, texts: Sequence[str]) -> None:
        distinct = list(dict.fromkeys([*texts, ""]))  # the empty one is what a dropped prompt becomes
        self._place = {text: row for row, text in enumerate(distinct)}
        with evaluating(backbone.pipe):
            parts = [backbone.encode_text(distinct[i : i + TEXTS_AT_ONCE]).to("cpu")
                     for i in range(0, len(distinct), TEXTS_AT_ONCE)]  # fmt: skip
        self._rows = Condition.cat(parts)

    def __call__(self, texts: Sequence[str]) -> Condition:
        return self._rows.rows(torch.tensor([self._place[text] for text in texts]))
