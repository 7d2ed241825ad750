"""What scoring in memory gives back: arrays by reward, rows, a table. May import: types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from visfeedback.scoring import tables
from visfeedback.scoring.summary import interval, labels
from visfeedback.scoring.work import Identity


@dataclass(frozen=True)
class Scores:
    """Scores by reward: ``scores["hpsv2"]`` is (N,), or (N, P) for a matrix; NaN where there is none.

    Two rewards of one name (two mixes, two fits) are told apart by their model: ``scores["mix (a.toml)"]``.
    """

    images: list[str]
    prompts: list[str | None]
    """one for each image, or the P columns of the matrix"""
    sha256: list[str]
    values: list[np.ndarray]
    identities: list[Identity]
    failed: list[dict[str, Any]] = field(default_factory=list)
    """what has no score, and why"""

    @property
    def rewards(self) -> list[str]:
        return list(labels((one.reward, one.model, one.checkpoint_sha256) for one in self.identities).values())

    def __getitem__(self, reward: str) -> np.ndarray:
        if reward not in self.rewards:
            raise KeyError(f"no reward {reward!r} here; there are {', '.join(self.rewards)}")
        return self.values[self.rewards.index(reward)]

    def __len__(self) -> int:
        return len(self.images)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict for each image x prompt x reward that has a score, with the columns of `visfeedback score`."""
        for n, image in enumerate(self.images):
            matrix = self.values[0].ndim == 2
            for p, prompt in enumerate(self.prompts) if matrix else [(0, self.prompts[n])]:
                for about, values in zip(self.identities, self.values, strict=True):
                    score = float(values[n, p] if matrix else values[n])
                    if np.isfinite(score):
                        row = {"image": image, "image_sha256": self.sha256[n], "prompt": prompt, "score": score}
                        yield {name: {**row, **about.model_dump()}[name] for name in tables.COLUMNS}

    def table(self) -> pa.Table:
        """The same as a pyarrow table; ``.to_pandas()`` makes a data frame of it."""
        return pa.Table.from_pylist(list(self.rows()), tables.SCHEMA)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.values[0].shape))
        lines = [f"{shape} scores" + (f", {len(self.failed)} failed" if self.failed else "")]
        width = max(map(len, self.rewards))
        for name, values in zip(self.rewards, self.values, strict=True):
            known = values[np.isfinite(values)]
            lines.append(f"  {name:<{width}}  {_words(known)}")
        return "\n".join(lines)


def _words(scores: np.ndarray) -> str:
    if not len(scores):
        return "no score"
    low, high = interval(scores.astype(float), np.arange(len(scores)))
    sure = f" ({low:.4g} to {high:.4g})" if np.isfinite(low) else ""
    return f"mean {scores.mean():.4g}{sure}, {scores.min():.4g} to {scores.max():.4g}"
