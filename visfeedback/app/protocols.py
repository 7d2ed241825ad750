"""What `visfeedback collect` hands to the app, because drawing needs torch and the app has none. Structural types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image

from visfeedback.types.records import Prompt, Sample


@dataclass(frozen=True)
class Drawing:
    """How far live generation is."""

    running: bool
    ready: int
    """pairs that wait for somebody"""
    drawn: int
    """images drawn since the start"""
    candidates: tuple[str, ...]
    """who draws: `base` and the adapters, or `base` alone with different seeds"""
    problem: str = ""
    """one line when drawing has failed; empty while all is well"""


class Generator(Protocol):
    """A model that draws in the background, ahead of the people who judge. May be called from any thread."""

    model: str
    """as the user named it: `shapes:sd`"""

    def status(self) -> Drawing: ...

    def wake(self) -> None:
        """Somebody has nothing to judge: draw another few pairs, however many wait for others."""
        ...

    def add_candidate(self, adapter: str) -> None:
        """From now on images with this adapter (a LoRA folder or file) are drawn and compared, too.

        Raises InputError when it cannot be loaded.
        """
        ...

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], adapter: str = "") -> list[Image]:
        """One image for each prompt and seed, with the base model or an adapter; waits for its turn at the device."""
        ...

    def keep(self, prompts: Sequence[Prompt], seeds: Sequence[int], adapter: str = "") -> list[Sample]:
        """As `draw`, and the images are in the store with all it takes to make them again."""
        ...
