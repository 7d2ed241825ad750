"""Batches of images with a score each, from stored ones or from rounds of fresh ones.

What a call shows of an image (time, noise, where in its latent distribution, dropped prompt) has a generator of its
own, seeded by (seed, image, epoch): it does not depend on the batch. Images of weight 0 leave the set before it is
shuffled, so best-of-N costs what its best images cost; a round that leaves none is passed over: its batches have the
share 0, and so no gradient. May import: types, plugins, sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.sampling.generate import derive_seed
from visfeedback.training.batches import TRIES
from visfeedback.training.cache import Rows
from visfeedback.training.rounds import Drawn, Rounds, order
from visfeedback.training.settings import TrainSettings
from visfeedback.training.together import Gather
from visfeedback.types.batches import Condition, Scored
from visfeedback.types.protocols import Process


@dataclass(frozen=True)
class ScoredSet:
    """Images that have been weighed; lists and tensors have an entry for each."""

    names: Sequence[str]
    prompts: Sequence[str]
    negatives: Sequence[str]
    group: Tensor  # (N,) long
    scores: Tensor  # (N,)
    weight: Tensor  # (N,)
    moments: Rows  # name -> mean, std (C, h, w)
    text: Callable[[Sequence[str]], Condition]
    facts: Mapping[str, float]

    @classmethod
    def of(cls, drawn: Drawn) -> ScoredSet:
        """A round of fresh images: their latents are known exactly."""
        place = {name: row for row, name in enumerate(drawn.names)}
        images = drawn.paths.images

        class Exact:
            def rows(self, keys: Sequence[str]) -> dict[str, Tensor]:
                mean = images[[place[key] for key in keys]]
                return {"mean": mean, "std": torch.zeros_like(mean)}

        return cls(
            drawn.names, [p.text for p in drawn.prompts], [p.negative for p in drawn.prompts], drawn.group,
            drawn.scores, drawn.weight, Exact(), drawn.texts, drawn.facts,
        )  # fmt: skip


class Sets(Protocol):
    """Number of a round -> its images on this process."""

    def of(self, number: int) -> ScoredSet: ...

    def save(self, number: int) -> dict[str, Any]: ...

    def restore(self, saved: dict[str, Any]) -> None: ...


class OneSet:
    """Stored images."""

    def __init__(self, images: ScoredSet) -> None:
        self._images = images

    def of(self, number: int) -> ScoredSet:
        return self._images

    def save(self, number: int) -> dict[str, Any]:
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Nothing is remembered."""


class FreshSets:
    """Rounds of fresh images."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds
        self._now: tuple[int, ScoredSet] | None = None

    def of(self, number: int) -> ScoredSet:
        if self._now is None or self._now[0] != number:
            self._now = None
            self._now = (number, ScoredSet.of(self._rounds.of(number)))
        return self._now[1]

    def save(self, number: int) -> dict[str, Any]:
        return self._rounds.save(number)

    def restore(self, saved: dict[str, Any]) -> None:
        self._rounds.restore(saved)


class ScoredBatches:
    """Batches of the endless shuffled stream over a set; of fresh sets a new one every ``per_round`` steps.

    Stored images are one round without end (per_round 0).
    """

    def __init__(
        self, sets: Sets, settings: TrainSettings, process: Process, per_round: int = 0,
        share: tuple[int, int] = (0, 1), processes: int = 1, made: int = 0, real: ScoredBatches | None = None,
        gather: Gather = lambda value: value,
    ) -> None:  # fmt: skip
        """``share``: which process this is of how many that learn from one set; ``made``: images drawn in a round by
        all ``processes`` together; ``real``: of images that accompany every batch; ``gather`` where
        each process has a set of its own."""
        self._sets, self.settings, self.process, self.per_round = sets, settings, process, per_round
        self._rank, self._ranks = share
        self._processes, self._made, self._real, self._gather = processes, made, real, gather
        self.calls = settings.optim.accumulate
        self.facts: Mapping[str, float] = {}
        self._order = lru_cache(maxsize=2)(self._shuffle)
        self._everywhere = lru_cache(maxsize=1)(self._count)

    def batch(self, step: int, micro: int = 0, rank: int = 0) -> Scored:
        """The ``micro``-th batch of step ``step`` of this process."""
        number, place = divmod(step, self.per_round) if self.per_round else (0, step)
        images, optim = self._sets.of(number), self.settings.optim
        kept: list[int] = images.weight.nonzero().flatten().tolist()
        share = self._share(number, images, len(kept))
        rows = kept or list(range(len(images.names)))  # something to call the network with
        call = (place * optim.accumulate + micro) * self._ranks + self._rank
        items = [self._at(number, rows, call * optim.batch_size + i) for i in range(optim.batch_size)]
        real = None if self._real is None else self._real.batch(step, micro, rank)
        return replace(self.collate(images, items), real=real, share=share)

    def _share(self, number: int, images: ScoredSet, kept: int) -> float:
        """What makes the mean over processes that over all kept images, wherever they were drawn.

        Raises InputError for stored images when none is kept, for there will be no others.
        """
        if not self.per_round:
            self.facts = images.facts
            if not kept:
                raise InputError(
                    "the method gave every image the weight 0, so none is left to learn from; look at the reward"
                )
            return 1.0
        everywhere = self._everywhere(number, kept)
        self.facts = {**images.facts, "images_with_weight": everywhere}
        return kept * self._processes / everywhere if everywhere else 0.0

    def _count(self, number: int, kept: int) -> int:
        """Images of round ``number`` that are learned, over all processes."""
        return sum(self._gather([kept]))

    def _at(self, number: int, kept: Sequence[int], position: int) -> tuple[int, int]:
        """(row, epoch) at a place of the stream."""
        epoch, place = divmod(position, len(kept))
        return kept[self._order(len(kept), number, epoch)[place]], epoch

    def _shuffle(self, count: int, number: int, epoch: int) -> list[int]:
        return order(count, self.settings.engine.seed, f"images of round {number}", epoch)

    def collate(self, images: ScoredSet, items: Sequence[tuple[int, int]]) -> Scored:
        """(row, epoch) items -> a batch on the CPU."""
        rows = [row for row, _ in items]
        moments = images.moments.rows([images.names[row] for row in rows])
        mean, std = moments["mean"].float(), moments["std"].float()
        draws = [self._draw(images.names[row], epoch, mean.shape[1:]) for row, epoch in items]
        prompts = ["" if dropped else images.prompts[row] for row, (*_, dropped) in zip(rows, draws, strict=True)]
        return Scored(
            latents=mean + std * torch.stack([place for _, _, place, _ in draws]),
            condition=images.text(prompts), scores=images.scores[rows], group=images.group[rows],
            weight=images.weight[rows], noise=torch.stack([noise for _, noise, _, _ in draws]),
            t=torch.cat([t for t, *_ in draws]), unconditional=images.text([images.negatives[row] for row in rows]),
        )  # fmt: skip

    def _draw(self, name: str, epoch: int, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Time (1,), noise, place in the latent distribution (C, h, w), and whether the prompt is dropped."""
        generator = torch.Generator().manual_seed(derive_seed(self.settings.engine.seed, f"scored {name}", epoch))
        dropped = torch.rand(1, generator=generator).item() < self.settings.data.prompt_drop
        t = self._time(generator)
        noise, place = torch.randn((2, *shape), generator=generator)
        return t, noise, place, dropped

    def _time(self, generator: torch.Generator) -> Tensor:
        low, high = self.settings.data.times
        for _ in range(TRIES):
            t = self.process.sample_t(1, generator)
            if low < t.item() <= high:
                return t
        raise InputError(f"data.times = {low} {high}: this model is hardly ever trained there; widen it")

    def counts(self, step: int) -> dict[str, float]:
        """What a row of metrics says about data after ``step`` steps."""
        optim = self.settings.optim
        seen = step * optim.batch_size * optim.accumulate * self._processes
        made = {"images_made": self._made * -(-step // self.per_round)} if self.per_round else {}
        return {"images_seen": seen, **made, **self.facts}

    def save(self, step: int) -> dict[str, Any]:
        """For a checkpoint after ``step`` steps: the round, if steps of it are still to come."""
        within = self.per_round and step % self.per_round
        return {"facts": dict(self.facts), "round": self._sets.save(step // self.per_round) if within else {}}

    def restore(self, saved: dict[str, Any]) -> None:
        self.facts = saved["facts"]
        self._sets.restore(saved["round"])
