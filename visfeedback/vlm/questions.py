"""What a vision-language model is asked, and what it replies: plain values, shared by judges and rewards.

May import: types. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL.Image import Image

from visfeedback.types.records import Origin


@dataclass(frozen=True)
class Question:
    """One user turn: texts and images in the order in which the model reads them."""

    parts: tuple[str | Image, ...]
    system: str = ""

    @classmethod
    def about(cls, text: str, *images: Image, system: str = "") -> Question:
        """The images first, then the text."""
        return cls((*images, text), system)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Reply:
    """The answer to one question; ``error`` is one line that says why there is none, empty when there is."""

    text: str = ""
    chances: Mapping[str, float] = field(default_factory=dict)
    """answer -> probability that the model begins with it"""
    error: str = ""


class Vlm(Protocol):
    """A vision-language model."""

    name: str
    """`MODEL@BASE_URL`, or the folder or hub id of local weights"""
    origin: Origin

    def ask(self, questions: Sequence[Question], max_tokens: int = 512) -> list[Reply]:
        """One reply with ``text`` per question, the likeliest word after word (temperature 0).

        Raises InputError for what no question can cure: no server, a refused key, an unknown model.
        """
        ...

    def probability(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Reply]:
        """One reply with ``chances`` per question: how likely each of ``answers`` is the first word.

        The chances do not add up to 1: the rest belongs to other words.
        """
        ...
