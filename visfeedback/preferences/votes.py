"""Feedback as arrays of votes between models: what Bradley-Terry, win rates and agreement are computed from.

A pair is one vote; a ranking, a best-of-N or a rating of several images together is a vote for each two of its images.
Skips, flags, gold items, what was taken back, and images whose maker is unknown give none.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visfeedback.preferences.pairs import within
from visfeedback.types.records import Feedback

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Votes:
    """N votes on M models by A judges about P prompts; rows of the arrays belong together."""

    models: tuple[str, ...]
    first: Ints  # (N,) index into models
    second: Ints  # (N,), never equal to first
    share: Floats  # (N,) in [0, 1]: how much of the vote goes to first; 1, .5 (tie), 0 where a person chose
    judge: Ints  # (N,) 0 .. A-1
    prompt: Ints  # (N,) 0 .. P-1
    judges: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.share)


def votes(feedback: Iterable[Feedback], maker: Mapping[str, str], criterion: str | None = "overall") -> Votes:
    """One pass over standing feedback (tombstones obeyed by the store). ``maker``: sample id -> who made the image.

    ``criterion`` None takes all of them. Votes between images of one maker say nothing about models and are left out.
    """
    names: dict[str, int] = {}
    judges: dict[str, int] = {}
    prompts: dict[str, int] = {}
    columns = [array("q") for _ in range(4)]
    shares = array("d")
    for record in feedback:
        if record.gold or record.choice in ("skip", "flag") or (criterion and record.criterion != criterion):
            continue
        for a, b, share in within(record):
            one, other = maker.get(a), maker.get(b)
            if not one or not other or one == other:
                continue
            row = (
                names.setdefault(one, len(names)), names.setdefault(other, len(names)),
                judges.setdefault(record.judge, len(judges)), prompts.setdefault(record.prompt_id, len(prompts)),
            )  # fmt: skip
            for column, value in zip(columns, row, strict=True):
                column.append(value)
            shares.append(share)
    first, second, judge, prompt = (np.array(column, dtype=np.int64) for column in columns)
    return Votes(tuple(names), first, second, np.array(shares), judge, prompt, tuple(judges))
