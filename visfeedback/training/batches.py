"""Stored pairs -> batches of tensors, as pure functions of (seed, step): nothing has to be remembered to go on.

The endless stream of pairs is epoch after epoch, each in its own shuffled order; step s takes the next
batch_size * accumulate * processes of it, so a run's place in the data is its step number. A pair's draw d (time,
noise, latent noise, dropped prompt, mirroring) has its own generator, seeded by (seed, pair, d): it does not depend on
the batch or the process it lands in, and the reference's errors for it can be computed ahead. With `group` the pairs of
a prompt share their draw and come together, so that an image in several of them is evaluated once.
May import: types, sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.sampling.generate import derive_seed
from visfeedback.training.cache import Rows
from visfeedback.training.data import Pair
from visfeedback.types.batches import Condition, Pairs
from visfeedback.types.protocols import Process

TRIES = 10_000
"""draws of t before a part of the schedule counts as empty"""
MIRRORED = "|mirrored"
"""suffix of a mirrored image's key"""


@dataclass(frozen=True)
class Recipe:
    """All that the stream depends on besides the pairs."""

    seed: int
    batch_size: int
    accumulate: int = 1
    processes: int = 1
    draws: int = 0  # 0 = a new draw in every epoch
    prompt_drop: float = 0.0
    flip: bool = False
    group: bool = False  # pairs of one prompt come one after the other and share their draw
    times: tuple[float, float] = (0.0, 1.0)  # part of the noise schedule that t is drawn from

    @property
    def per_step(self) -> int:
        return self.batch_size * self.accumulate * self.processes


@dataclass(frozen=True)
class Draw:
    """What chance decides for one pair in one epoch."""

    t: Tensor  # (1,)
    noise: Tensor  # (C, h, w)
    winner: Tensor  # (C, h, w) where in the winner's latent distribution
    loser: Tensor  # (C, h, w)
    dropped: bool
    mirrored: bool


@dataclass(frozen=True)
class Tables:
    """Where encoded images, prompts and reference errors come from."""

    moments: Rows  # image key -> mean, std (C, h, w)
    text: Rows  # prompt -> tokens, pooled, extras
    reference: Rows | None = None  # pair|draw -> errors (2,)


class PairBatches:
    """Batches of the stream of ``pairs``."""

    def __init__(self, pairs: Sequence[Pair], tables: Tables, process: Process, recipe: Recipe) -> None:
        self.pairs, self.tables, self.process, self.recipe = pairs, tables, process, recipe
        self._by_id = {pair.id: pair for pair in pairs}
        self._order = lru_cache(maxsize=2)(self._shuffle)

    @property
    def calls(self) -> int:
        """Network calls of an optimizer step."""
        return self.recipe.accumulate

    def batch(self, step: int, micro: int = 0, rank: int = 0) -> Pairs:
        """The ``micro``-th batch of process ``rank`` in step ``step`` (counted from 0)."""
        recipe = self.recipe
        start = step * recipe.per_step + (micro * recipe.processes + rank) * recipe.batch_size
        items = [self.at(position) for position in range(start, start + recipe.batch_size)]
        return self.collate(items)

    def at(self, position: int) -> tuple[Pair, int]:
        """The pair at a place of the stream, and which of its draws."""
        epoch, place = divmod(position, len(self.pairs))
        return self.pairs[self._order(epoch)[place]], self.draw_index(epoch)

    def draw_index(self, epoch: int) -> int:
        return epoch % self.recipe.draws if self.recipe.draws else epoch

    def _shuffle(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, "order", epoch))
        order = torch.randperm(len(self.pairs), generator=generator).tolist()
        if not self.recipe.group:
            return order
        groups: dict[str, list[int]] = {}  # in the order in which their first pair was drawn
        for place in order:
            groups.setdefault(self.pairs[place].prompt, []).append(place)
        return [place for group in groups.values() for place in group]

    def collate(self, items: Sequence[tuple[Pair, int]], reference: bool = True) -> Pairs:
        """(pair, draw) items -> a batch on the CPU, with reference errors if there is a table and they are wanted."""
        flips = [self._chances(pair, draw)[1] for pair, draw in items]
        keys = [image_key(p.winner, f) for (p, _), f in zip(items, flips, strict=True)]
        keys += [image_key(p.loser, f) for (p, _), f in zip(items, flips, strict=True)]
        moments = self.tables.moments.rows(keys)
        mean, std = moments["mean"].float(), moments["std"].float()  # (2B, C, h, w)
        draws = [self.draw(pair, index, mean.shape[1:]) for pair, index in items]
        latents = mean + std * torch.stack([d.winner for d in draws] + [d.loser for d in draws]).to(mean)
        winner, loser = latents.chunk(2)
        prompts = ["" if d.dropped else pair.prompt for (pair, _), d in zip(items, draws, strict=True)]
        errors = self.tables.reference if reference else None
        return Pairs(
            winner=winner, loser=loser, condition=condition(self.tables.text.rows(prompts)),
            probability=torch.tensor([pair.probability for pair, _ in items]),
            weight=torch.tensor([pair.weight for pair, _ in items]),
            noise=torch.stack([d.noise for d in draws]), t=torch.cat([d.t for d in draws]),
            reference_errors=None if errors is None else errors.rows([draw_key(p, d) for p, d in items])["errors"],
            same=self._same(items) if self.recipe.group else None,
        )  # fmt: skip

    def _same(self, items: Sequence[tuple[Pair, int]]) -> Tensor:
        """(B, 2): images of one prompt and draw are one evaluation wherever they stand."""
        numbers: dict[tuple[str, int, str], int] = {}
        rows = [
            [numbers.setdefault((pair.prompt, draw, image), len(numbers)) for image in (pair.winner, pair.loser)]
            for pair, draw in items
        ]
        return torch.tensor(rows)

    def draw(self, pair: Pair, index: int, latent: Sequence[int]) -> Draw:
        """Draw ``index`` of a pair; the order of these calls is part of every cached number."""
        generator = self._generator(pair, index)
        chances = torch.rand(2, generator=generator).tolist()
        t = self._time(generator)
        noise, winner, loser = torch.randn((3, *latent), generator=generator)
        if self.recipe.group:  # an image keeps its latents in all pairs of the group
            winner, loser = (self._latent_noise(image, index, latent) for image in (pair.winner, pair.loser))
        return Draw(t, noise, winner, loser, chances[0] < self.recipe.prompt_drop, self._mirrors(chances[1]))

    def _time(self, generator: torch.Generator) -> Tensor:
        """(1,) a time as this family is trained, drawn again until it lies in the wanted part."""
        low, high = self.recipe.times
        for _ in range(TRIES):
            t = self.process.sample_t(1, generator)
            if low < t.item() <= high:
                return t
        raise InputError(f"data.times = {low} {high}: this model is hardly ever trained there; widen it")

    def _chances(self, pair: Pair, index: int) -> tuple[bool, bool]:
        """Whether the prompt is dropped and the images are mirrored, known before the latents are looked up."""
        if not (self.recipe.prompt_drop or self.recipe.flip):
            return False, False
        drop, mirror = torch.rand(2, generator=self._generator(pair, index)).tolist()
        return drop < self.recipe.prompt_drop, self._mirrors(mirror)

    def _mirrors(self, chance: float) -> bool:
        return self.recipe.flip and chance < 0.5

    def _generator(self, pair: Pair, index: int) -> torch.Generator:
        name = f"group {pair.prompt}" if self.recipe.group else pair.id
        return torch.Generator().manual_seed(derive_seed(self.recipe.seed, name, index))

    def _latent_noise(self, image: str, index: int, latent: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, f"image {image}", index))
        return torch.randn(tuple(latent), generator=generator)

    def pairs_of(self, keys: Sequence[str]) -> Pairs:
        """The batch behind keys of the reference table, without reference errors."""
        split = [key.rpartition("|") for key in keys]
        return self.collate([(self._by_id[name], int(draw)) for name, _, draw in split], reference=False)

    def items(self, steps: int) -> Iterator[tuple[Pair, int]]:
        """Every (pair, draw) of the first ``steps`` steps once, in the order of first use: more steps add some at the
        end, and ``batch_size`` of them are a batch of the stream for as long as nothing repeats."""
        count, different = steps * self.recipe.per_step, self.recipe.draws * len(self.pairs)
        return (self.at(position) for position in range(min(count, different) if different else count))

    def repeats(self, steps: int) -> bool:
        """Whether any (pair, draw) comes twice in that many steps."""
        return 0 < self.recipe.draws * len(self.pairs) < steps * self.recipe.per_step

    def shown(self, items: Iterable[tuple[Pair, int]]) -> tuple[list[str], list[str]]:
        """Keys of the images and texts that these items need, each once, in the order of first use."""
        images, texts = dict[str, None](), dict[str, None]()
        most = (1 + self.recipe.flip) * len({image for pair in self.pairs for image in (pair.winner, pair.loser)})
        every = {pair.prompt for pair in self.pairs} | ({""} if self.recipe.prompt_drop else set())
        for pair, draw in items:
            dropped, mirrored = self._chances(pair, draw)
            texts["" if dropped else pair.prompt] = None
            images |= dict.fromkeys(image_key(image, mirrored) for image in (pair.winner, pair.loser))
            if len(images) == most and len(texts) == len(every):  # there is no other
                break
        return list(images), list(texts)


def image_key(image: str, mirrored: bool) -> str:
    return image + MIRRORED if mirrored else image


def draw_key(pair: Pair, draw: int) -> str:
    return f"{pair.id}|{draw}"


def condition(rows: dict[str, Tensor]) -> Condition:
    """Rows of the text table -> the network's condition."""
    extras = {name.removeprefix("extras."): t for name, t in rows.items() if name.startswith("extras.")}
    return Condition(tokens=rows["tokens"], pooled=rows.get("pooled"), extras=extras)


def condition_rows(value: Condition) -> dict[str, Tensor]:
    """The inverse of `condition`."""
    pooled = {} if value.pooled is None else {"pooled": value.pooled}
    return {"tokens": value.tokens, **pooled, **{f"extras.{name}": t for name, t in value.extras.items()}}
