"""Stored pairs as a source: batches, held-out pairs, and what is said about them.

May import: types.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor

from visfeedback.training import looks
from visfeedback.training.batches import PairBatches
from visfeedback.training.data import Pair
from visfeedback.types.batches import Condition


class PairSource:
    """Satisfies `sources.Source`."""

    def __init__(self, batches: PairBatches, held_out: PairBatches | None) -> None:
        self.batches, self.held_out = batches, held_out
        self.prompts = list(dict.fromkeys(pair.prompt for pair in batches.pairs))
        self.learned = f"{len(batches.pairs)} preferences over {len(self.prompts)} prompts"

    def counts(self, step: int) -> dict[str, float]:
        return {"images_seen": 2 * step * self.batches.recipe.per_step}

    def probe(self) -> tuple[Tensor, Condition, int]:
        """Winners of a few training pairs."""
        return self._probe

    @cached_property
    def _probe(self) -> tuple[Tensor, Condition, int]:
        items = looks.probe(self.batches.pairs, self.batches.recipe.batch_size)
        batch = self.batches.collate(items, reference=False)
        return batch.winner, batch.condition, looks.drift_draws(items)

    def measure(self, loss: Callable[[Any], tuple[Tensor, dict[str, float]]]) -> dict[str, float]:
        """Loss and accuracy on held-out pairs."""
        batches = self.held_out
        if batches is None:
            return {}
        size, items = batches.recipe.batch_size, self._held_out_items
        totals: dict[str, float] = {}
        for start in range(0, len(items), size):
            part = items[start : start + size]
            value, metrics = loss(batches.collate(part))
            for name, number in {"loss": float(value), **metrics}.items():
                totals[name] = totals.get(name, 0.0) + number * len(part) / len(items)
        names = ("loss", "implicit_accuracy")
        return {f"holdout_{name}": totals[name] for name in names if name in totals}

    @cached_property
    def _held_out_items(self) -> list[tuple[Pair, int]]:
        return looks.held_out(self.held_out.pairs) if self.held_out else []

    def measured_on(self) -> dict[str, dict[str, int]]:
        held = self.held_out.pairs if self.held_out else []
        return looks.looked_at(self.batches.pairs, held, self.batches.recipe.batch_size)

    def summary(self, step: int) -> dict[str, Any]:
        pairs, seen = len(self.batches.pairs), step * self.batches.recipe.per_step
        held = len(self.held_out.pairs) if self.held_out else 0
        return {
            "pairs": pairs, "pairs_held_out": held, "prompts": len(self.prompts), "epochs": round(seen / pairs, 2),
            **self.counts(step),
        }  # fmt: skip

    def save(self, step: int) -> dict[str, Any]:
        """Nothing: a place in the data is its step number."""
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Nothing was saved."""
