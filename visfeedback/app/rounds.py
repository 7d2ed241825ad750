"""Sessions in rounds: images are drawn, somebody likes and dislikes, the next round follows.

What lives here: the protocol of whoever draws (``Engine``: FABRIC; D3PO, which trains between rounds, has the same face
and takes longer), and what a session is. Sessions live in the store alone and are append-only (``board_sessions``); an
engine may keep more, but no marks:

- a round that was drawn is a record of kind ``text`` and criterion ``rounds``: the images in their order, the round it
  follows, and in ``extra`` the session, the number and what was asked for;
- a mark is a ``like`` record of criterion ``overall``, so that likes teach as all feedback does; taking it back is a
  tombstone.

One may go back to any round and go on from there: rounds are a tree, and only what was liked on the way counts.
May import: types.records, store, plugins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, field_validator

from visfeedback.plugins import InputError
from visfeedback.store.core import ROUND
from visfeedback.types.records import Frozen, Prompt, Sample

CRITERION = ROUND
"""of the records that say what was drawn; the store keeps them apart from what people said"""


class Wish(Frozen):
    """What somebody asks for when a session begins."""

    prompt: str = Field(min_length=1, max_length=2000)
    """what is drawn"""
    negative: str = Field(default="", max_length=2000)
    """what is not"""
    images: int = Field(default=4, ge=2, le=12)
    """of each round"""
    seed: int = Field(default=0, ge=0, lt=2**53)
    """all images follow from it"""
    strength: float = Field(default=0.5, ge=0, le=1)
    """how much liked and disliked images act; for engines that learn, how fast"""
    engine: str = "fabric"
    """who draws"""

    @field_validator("prompt", "negative", mode="before")
    @classmethod
    def _trimmed(cls, text: Any) -> Any:
        return " ".join(text.split()) if isinstance(text, str) else text


@dataclass(frozen=True)
class Past:
    """A round that was drawn and judged, for whoever draws the next one."""

    samples: tuple[Sample, ...]
    """with the paths of their images"""
    marks: tuple[int, ...]
    """1 liked, -1 disliked, 0 neither; as long as samples"""
    number: int
    """of the round in its session"""

    def paths(self, mark: int) -> list[Path]:
        """Images with this mark."""
        return [Path(s.path) for s, m in zip(self.samples, self.marks, strict=True) if m == mark]


@dataclass(frozen=True)
class Ask:
    """All that decides a round."""

    wish: Wish
    prompt: Prompt
    session: str
    number: int
    """0 = the first round of the session"""
    past: tuple[Past, ...]
    """the rounds that lead to this one, the first one first"""

    @property
    def liked(self) -> list[Path]:
        return [path for past in self.past for path in past.paths(1)]

    @property
    def disliked(self) -> list[Path]:
        return [path for past in self.past for path in past.paths(-1)]


class Engine(Protocol):
    """Draws rounds. May be called from any thread; calls wait for their turn at the device."""

    title: str
    """for people: a few words, `FABRIC: steers at once`"""

    def draw(self, ask: Ask, said: Callable[[str], None]) -> list[Sample]:
        """``ask.wish.images`` new samples, kept in the store, path and all; ``said`` is told how it goes.

        The same ask gives the same images. Raises InputError for what cannot be drawn.
        """
        ...


class Rounds(Protocol):
    """What `visfeedback collect` hands in: engines by name, the default one first."""

    @property
    def engines(self) -> Mapping[str, Engine]: ...


@dataclass(frozen=True)
class Round:
    """One drawn round and its marks."""

    number: int
    parent: int
    """the round it follows; -1 for the first"""
    sample_ids: tuple[str, ...]
    marks: tuple[int, ...]

    @property
    def title(self) -> str:
        usual = self.parent == self.number - 1
        return f"Round {self.number + 1}" + ("" if usual else f" (after {self.parent + 1})")


@dataclass
class Session:
    """One judge's session as the store has it now."""

    id: str
    judge: str
    wish: Wish
    prompt: Prompt
    rounds: list[Round] = field(default_factory=list)

    def at(self, number: int) -> Round:
        """InputError when there is no such round."""
        found = next((one for one in self.rounds if one.number == number), None)
        if found is None:
            raise InputError(f"this session has no round {number + 1}; it has {len(self.rounds)}")
        return found

    def way(self, number: int) -> list[Round]:
        """The rounds from the first one to ``number``."""
        found: list[Round] = []
        while number >= 0:
            found.append(self.at(number))
            number = found[-1].parent
        return found[::-1]
