"""Batches for methods that learn from denoising paths: one step of a few paths for each network call.

An optimizer step takes the next batch_size * accumulate paths (per process) of its round and all their steps, so it is
calls = accumulate * steps network calls. Paths of weight 0 are left out of a call, and the loss is scaled by the share
that is left: the gradient is as if they were there. May import: types, plugins, sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import Walk, noisy_steps
from visfeedback.training.rounds import Drawn, order
from visfeedback.training.settings import TrainSettings
from visfeedback.types.batches import Rollouts
from visfeedback.types.protocols import Process


class Supply(Protocol):
    """Where paths come from: fresh rounds, or a folder."""

    @property
    def size(self) -> int:
        """Paths of this process in a round."""
        ...

    def of(self, number: int) -> Drawn: ...

    def save(self, number: int) -> dict[str, Any]: ...

    def restore(self, saved: dict[str, Any]) -> None: ...


class PathBatches:
    """Batches of the rounds of ``supply``."""

    def __init__(
        self, supply: Supply, settings: TrainSettings, process: Process, walk: Walk,
        gather: Callable[[list[Any]], list[Any]],
    ) -> None:  # fmt: skip
        self.supply, self.settings, self.walk, self._gather = supply, settings, walk, gather
        self.learned = learned_steps(settings, process, walk)
        self.used = 0  # images in network calls of this process so far
        self.facts: dict[str, float] = {}  # of the newest round
        self._order = lru_cache(maxsize=2)(self._shuffle)

    @property
    def calls(self) -> int:
        """Network calls of an optimizer step."""
        return self.settings.optim.accumulate * self._steps

    @property
    def _steps(self) -> int:
        """Steps of a path that are learned in one optimizer step."""
        return min(self.settings.rollout.train_steps or len(self.learned), len(self.learned))

    @property
    def per_round(self) -> int:
        """Optimizer steps that learn from a round."""
        optim, rollout = self.settings.optim, self.settings.rollout
        return rollout.every or max(1, self.supply.size * rollout.epochs // (optim.batch_size * optim.accumulate))

    def batch(self, step: int, micro: int = 0, rank: int = 0) -> Rollouts:
        """Network call ``micro`` of step ``step``: (B, 2, C, h, w) latents, before and after one step of each path."""
        number, place = divmod(step, self.per_round)
        part, k = divmod(micro, self._steps)
        drawn = self.supply.of(number)
        self.facts = drawn.facts
        chunk = place * self.settings.optim.accumulate + part
        rows, planned = self._rows(drawn, number, chunk)
        if k == 0:
            self.used += len(rows)
        chosen = self._chosen(number, chunk)[k]
        return replace(drawn.rollouts(rows, self.walk, chosen), share=len(rows) / planned)

    def _rows(self, drawn: Drawn, number: int, chunk: int) -> tuple[list[int], int]:
        """The images of a call that have a weight, and how many were planned; at least one (or one group) is left."""
        size = self.settings.optim.batch_size
        epoch, place = divmod(chunk, max(1, self.supply.size // size))
        planned = self._order(number, epoch)[place * size : (place + 1) * size]
        kept = [row for row in planned if drawn.weight[row] != 0]
        return kept or planned[: self._unit], len(planned)

    def _shuffle(self, number: int, epoch: int) -> list[int]:
        """Places of the round's images; those of a prompt stay together where the method compares them."""
        seed, unit = self.settings.engine.seed, self._unit
        blocks = order(self.supply.size // unit, seed, f"round {number}", epoch)
        return [block * unit + k for block in blocks for k in range(unit)]

    @property
    def _unit(self) -> int:
        return self.settings.rollout.per_prompt if getattr(self.settings.method, "whole_groups", False) else 1

    def _chosen(self, number: int, chunk: int) -> list[int]:
        """The steps that this call's paths are learned at."""
        if self._steps == len(self.learned):
            return self.learned
        seed = self.settings.engine.seed
        return sorted(self.learned[i] for i in order(len(self.learned), seed, f"steps {number}", chunk)[: self._steps])

    def counts(self, step: int) -> dict[str, float]:
        """What a row of metrics says about data after ``step`` steps."""
        rounds = -(-step // self.per_round)
        made = sum(self._gather([self.supply.size])) * rounds
        return {"images_seen": sum(self._gather([self.used])), "images_made": made, **self.facts}

    def save(self, step: int) -> dict[str, Any]:
        """For a checkpoint after ``step`` steps: the round, if steps of it are still to come."""
        number, place = divmod(step, self.per_round)
        return {"used": self.used, "facts": self.facts, "round": self.supply.save(number) if place else {}}

    def restore(self, saved: dict[str, Any]) -> None:
        self.used, self.facts = saved["used"], saved["facts"]
        self.supply.restore(saved["round"])


def learned_steps(settings: TrainSettings, process: Process, walk: Walk) -> list[int]:
    """Steps of a path that have a log-probability and lie in the wanted part of the schedule."""
    low, high = settings.rollout.times
    t = process.times(walk.steps).tolist()
    found = [k for k in noisy_steps(process, walk) if low < t[k] <= high]
    if not found:
        raise InputError(
            f"none of {walk.steps} steps is random and in rollout.times = {low} {high}; widen it: --rollout.times 0 1"
            + ("" if walk.random_times == (0, 1) else " --rollout.random-times 0 1")
        )
    return found


def check_groups(settings: TrainSettings) -> None:
    """Raises InputError unless a network call holds whole groups where the images of a prompt are compared."""
    size, each = settings.optim.batch_size, settings.rollout.per_prompt
    if getattr(settings.method, "whole_groups", False) and size % each:
        raise InputError(
            f"optim.batch_size = {size} cuts groups of {each} images; give a multiple: "
            f"--optim.batch-size {max(1, round(size / each)) * each}"
        )


def check_rounds(settings: TrainSettings, size: int) -> None:
    """Raises InputError unless a round is whole network calls, and these are whole groups where those are needed."""
    check_groups(settings)
    optim = settings.optim
    together = optim.batch_size * optim.accumulate
    if size * settings.rollout.epochs % together or size % optim.batch_size:
        raise InputError(
            f"a round of {size} images per process is no whole number of steps of {together} (batch_size "
            f"{optim.batch_size} x accumulate {optim.accumulate}); change --rollout.prompts-per-round or "
            "--optim.batch-size"
        )
