"""The blocks a page is made of: plain data, each drawn by the template that carries its ``kind``.

To add one: a frozen dataclass here with ``kind``, and ``templates/<kind>.html`` which draws ``block``.
May import: types. Texts are escaped by the templates; only ``Figure.svg`` is markup, and ``plots.py`` makes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

Tone = Literal["good", "bad", "plain"]


class Block(Protocol):
    """Anything with a ``kind`` that names a template."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Text:
    """Paragraphs of plain text; `words in backticks` become code."""

    paragraphs: tuple[str, ...]
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Track:
    """A point with its interval on a scale: drawn as a line under a number, with a tick at ``reference``."""

    point: float
    low: float
    high: float
    minimum: float
    maximum: float
    reference: float

    @classmethod
    def around(cls, point: float, low: float, high: float, reference: float) -> Track:
        """A scale centred on ``reference`` and wide enough for the whole interval."""
        reach = 1.25 * max(abs(low - reference), abs(high - reference), abs(point - reference), 1e-9)
        return cls(point, low, high, reference - reach, reference + reach, reference)

    def percent(self, value: float) -> float:
        """Where ``value`` stands on the scale, 0 = left end, 100 = right end."""
        share = (value - self.minimum) / (self.maximum - self.minimum)
        return round(100 * min(1.0, max(0.0, share)), 2)


@dataclass(frozen=True)
class Number:
    """A headline number with what it means and how sure it is."""

    label: str
    value: str
    unit: str = ""
    interval: str = ""
    note: str = ""
    tone: Tone = "plain"
    track: Track | None = None


@dataclass(frozen=True)
class Numbers:
    items: tuple[Number, ...]
    kind: ClassVar[str] = "numbers"


@dataclass(frozen=True)
class Share:
    """One part of a whole."""

    label: str
    count: int
    tone: Tone = "plain"
    strong: bool = False
    """drawn in the full colour instead of a pale one"""


@dataclass(frozen=True)
class Shares:
    """A whole cut into parts: one stacked bar with its legend."""

    items: tuple[Share, ...]
    kind: ClassVar[str] = "shares"

    @property
    def total(self) -> int:
        return sum(item.count for item in self.items)


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, with words for those who do not see it."""

    uri: str
    alt: str
    label: str = ""
    mark: str = ""
    """the verdict in words: `right`, `wrong: count`"""
    tone: Tone = "plain"
    pixelated: bool = False
    """pixel art: enlarged without smoothing"""


@dataclass(frozen=True)
class Card:
    """The pictures of one prompt side by side."""

    prompt: str
    pictures: tuple[Picture, ...]
    tag: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Cards:
    """A group of cards under a small heading, with a word on how they were picked."""

    cards: tuple[Card, ...]
    heading: str = ""
    note: str = ""
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Tile:
    """A small picture with a number over a line or two of words."""

    uri: str
    alt: str
    value: str
    words: str = ""
    note: str = ""
    """said when a mouse rests on it, and to programs"""
    pixelated: bool = False


@dataclass(frozen=True)
class Gallery:
    """Many small pictures in the order given, as many side by side as fit."""

    tiles: tuple[Tile, ...]
    heading: str = ""
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Figure:
    """A plot as inline SVG (from ``plots.py``, trusted)."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Figures:
    """Small plots: side by side where there is room, one below the other on a phone."""

    items: tuple[Figure, ...]
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Table:
    """Cells are texts; the first column names the row, the others are numbers unless ``words``."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    words: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Command:
    """Something to type, with a button that copies it."""

    text: str
    note: str = ""
    kind: ClassVar[str] = "command"


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two under it, and blocks."""

    title: str
    blocks: tuple[Block, ...]
    lead: str = ""

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
