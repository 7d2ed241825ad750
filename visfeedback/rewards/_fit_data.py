"""Comparisons as a reward learns from them: tables of images and prompts, a split by prompt, batches in a fixed order.

May import: types, preferences.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.preferences.files import PairRow
from visfeedback.types.records import text_id

MAX_PIXELS = 64_000_000  # as in the store: a few kilobytes of PNG can claim to be far more than memory holds


class Comparison(NamedTuple):
    """Two images of one prompt, and which of them is better."""

    prompt: str
    image_a: Path
    image_b: Path
    share: float  # in [0, 1], how much of the preference goes to image_a; .5 is a tie
    weight: float = 1.0


def from_rows(rows: Sequence[PairRow]) -> list[Comparison]:
    """The rows of a pairs file."""
    return [Comparison(row.prompt, row.path_a, row.path_b, row.p_a) for row in rows]


class Items(Protocol):
    """Images shown for prompts: an item is (place in ``images``, place in ``prompts``)."""

    @cached_property
    def images(self) -> list[Path]: ...

    @cached_property
    def prompts(self) -> list[str]: ...

    @cached_property
    def items(self) -> list[tuple[int, int]]: ...


class Pairs(NamedTuple):
    """B comparisons as tensors (B,); a and b are places in ``Table.items``."""

    a: Tensor
    b: Tensor
    share: Tensor
    weight: Tensor
    prompt: Tensor  # place in Table.prompts

    def at(self, rows: Tensor) -> Pairs:
        return Pairs(*(column[rows] for column in self))


@dataclass(frozen=True)
class Table:
    """All comparisons. An item is an image shown for a prompt: (place in ``images``, place in ``prompts``)."""

    comparisons: tuple[Comparison, ...]

    @cached_property
    def images(self) -> list[Path]:
        return list(dict.fromkeys(path for c in self.comparisons for path in (c.image_a, c.image_b)))

    @cached_property
    def prompts(self) -> list[str]:
        return list(dict.fromkeys(c.prompt for c in self.comparisons))

    @cached_property
    def items(self) -> list[tuple[int, int]]:
        return list(self._places)

    @cached_property
    def _places(self) -> dict[tuple[int, int], int]:
        image, prompt = ({name: n for n, name in enumerate(names)} for names in (self.images, self.prompts))
        both = ((image[path], prompt[c.prompt]) for c in self.comparisons for path in (c.image_a, c.image_b))
        return {item: n for n, item in enumerate(dict.fromkeys(both))}

    @cached_property
    def pairs(self) -> Pairs:
        image, prompt = ({name: n for n, name in enumerate(names)} for names in (self.images, self.prompts))
        rows = [(image[c.image_a], image[c.image_b], prompt[c.prompt]) for c in self.comparisons]
        return Pairs(
            torch.tensor([self._places[a, p] for a, _, p in rows]),
            torch.tensor([self._places[b, p] for _, b, p in rows]),
            torch.tensor([c.share for c in self.comparisons], dtype=torch.float32),
            torch.tensor([c.weight for c in self.comparisons], dtype=torch.float32),
            torch.tensor([p for *_, p in rows]),
        )

    @property
    def digest(self) -> str:
        """Names the comparisons: the same in every run on the same data."""
        parts = [f"{c.prompt}\n{c.image_a}\n{c.image_b}\n{c.share!r} {c.weight!r}" for c in self.comparisons]
        return text_id(*parts)


def table(comparisons: Sequence[Comparison], ties: str) -> tuple[Table, dict[str, int]]:
    """The comparisons that say something, and how many do not, by reason. ``ties="drop"`` leaves ties out too.

    Raises InputError when nothing is left that could be learned.
    """
    kept: list[Comparison] = []
    dropped: dict[str, int] = {}
    for one in comparisons:
        reason = _reason(one, ties)
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            kept.append(one)
    if all(one.share == 0.5 for one in kept):
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(
            f"nothing to learn from: {len(kept)} ties and no comparison with a better side"
            + (f" (left out: {why})" if why else "")
            + "; make some with: visfeedback label --store URL --judge J --images SRC"
        )
    return Table(tuple(kept)), dropped


def _reason(one: Comparison, ties: str) -> str:
    if one.image_a == one.image_b:
        return "same image"
    if one.weight <= 0:
        return "without weight"
    return "tie" if ties == "drop" and one.share == 0.5 else ""


class Split(NamedTuple):
    """Rows of ``Table.pairs``: to learn from, to stop and calibrate on, to measure on. No prompt is in two of them."""

    train: Tensor
    validation: Tensor
    test: Tensor


def split(data: Table, rows: Tensor, validation: float, test: float, seed: int) -> Split:
    """``rows`` by whole prompts, drawn by the seed and the prompt's text alone.

    Raises InputError for fewer than 3 prompts, and when only ties are left to learn from.
    """
    present = data.pairs.prompt[rows].unique().tolist()
    prompts = sorted(present, key=lambda n: text_id("fit", str(seed), data.prompts[n]))
    if len(prompts) < 3:
        raise InputError(
            f"comparisons of {len(prompts)} prompts; a fit needs at least 3: to learn from, to stop at, to measure on"
        )
    tested = min(max(1, round(test * len(prompts))), len(prompts) - 2)
    validated = min(max(1, round(validation * len(prompts))), len(prompts) - 1 - tested)
    parts = (prompts[tested + validated :], prompts[tested : tested + validated], prompts[:tested])
    found = Split(*(rows[torch.isin(data.pairs.prompt[rows], torch.tensor(part))] for part in parts))
    if not (data.pairs.share[found.train] != 0.5).any():
        raise InputError("all comparisons to learn from are ties; collect more, or try another --seed")
    return found


def batches(rows: Tensor, size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """``rows`` in an order that follows from seed and epoch alone, so a resumed run needs no random state."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return iter(rows[torch.randperm(len(rows), generator=generator)].split(size))


def open_image(path: Path) -> Image.Image:
    """A decoded picture. Raises InputError naming the file when it is missing or damaged."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path} is {image.width}x{image.height} pixels; make it smaller")
            image.load()
            return image
    except Image.DecompressionBombError:
        raise InputError(f"{path} has too many pixels; make it smaller") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error})") from None
