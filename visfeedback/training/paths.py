"""Batches for methods that learn from denoising paths: one step of a few paths for each network call.

An optimizer step takes the next batch_size * accumulate paths (per process) of its round and all their steps, so it is
calls = accumulate * steps network calls. Paths of weight 0 are left out of a call, unless the method needs all, and the
loss is scaled by the share that is left: the gradient is as if they were there. May import: types, plugins, sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import Walk, noisy_steps, within
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
        gather: Callable[[list[Any]], list[Any]], made: int = 0,
    ) -> None:  # fmt: skip
        """``made``: images that all processes draw in a round; 0 = they were drawn before."""
        self.supply, self.settings, self.walk, self._gather, self._made = supply, settings, walk, gather, made
        self.learned = learned_steps(settings, process, walk)
        self._step = self._before = self._within = 0  # a step; images of this process before it, and in it
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
        if micro == 0:
            self._step, self._before, self._within = step, self._used(step), 0
        if k == 0:
            self._within += len(rows)
        chosen = self._chosen(number, chunk)[k]
        return replace(drawn.rollouts(rows, self.walk, chosen), share=len(rows) / planned)

    def _rows(self, drawn: Drawn, number: int, chunk: int) -> tuple[list[int], int]:
        """The images of a call that have a weight, and how many were planned; at least one (or one group) is left.

        All of them for a method whose loss has a part that does not go by weight.
        """
        size = self.settings.optim.batch_size
        epoch, place = divmod(chunk, max(1, self.supply.size // size))
        planned = self._order(number, epoch)[place * size : (place + 1) * size]
        needs_all = getattr(self.settings.method, "needs_all", False)
        kept = [row for row in planned if needs_all or drawn.weight[row] != 0]
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
        made = {"images_made": self._made * -(-step // self.per_round)} if self._made else {}
        return {"images_seen": sum(self._gather([self._used(step)])), **made, **self.facts}

    def _used(self, step: int) -> int:
        """Images in network calls of this process before ``step``; a step that failed and comes again counts once."""
        return self._before + (self._within if self._step < step else 0)

    def save(self, step: int) -> dict[str, Any]:
        """For a checkpoint after ``step`` steps: the round, if steps of it are still to come."""
        number, place = divmod(step, self.per_round)
        return {"used": self._used(step), "facts": self.facts, "round": self.supply.save(number) if place else {}}

    def restore(self, saved: dict[str, Any]) -> None:
        self._before, self._within, self.facts = saved["used"], 0, saved["facts"]
        self.supply.restore(saved["round"])


def learned_steps(settings: TrainSettings, process: Process, walk: Walk) -> list[int]:
    """Steps of a path that have a log-probability and lie in the wanted part of the schedule."""
    low, high = settings.rollout.times
    wanted = within(process.times(walk.steps), settings.rollout.times)
    found = [k for k in noisy_steps(process, walk) if wanted[k]]
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
    optim, rollout = settings.optim, settings.rollout
    together = optim.batch_size * optim.accumulate
    if size % optim.batch_size or not (rollout.every or size * rollout.epochs % together == 0):
        steps = f"steps of {together} (batch_size {optim.batch_size} x accumulate {optim.accumulate})"
        parts = f"batches of {optim.batch_size}" if rollout.every else steps
        raise InputError(
            f"a round of {size} images per process is no whole number of {parts}; change --rollout.prompts-per-round "
            "or --optim.batch-size"
        )
