"""A simulated person as a judge: `simulated:shapes`. Slips, ties and a favoured side are part of the person.

Which image is shown left is drawn from the seed, told to the person, and recorded, as with people.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic import Field

from visfeedback.feedback.naming import differing
from visfeedback.feedback.sides import sides
from visfeedback.plugins import InputError, split_reference, world
from visfeedback.types.records import PAIR_VALUES, Choice, Feedback, Frozen, Prompt, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

OTHER: dict[str, Choice] = {"a": "b", "b": "a", "tie": "tie"}


class Settings(Frozen):
    seed: int = Field(default=0, ge=0)
    """which person it is, and on which side each image is shown"""
    noise: float | None = Field(default=None, ge=0, le=1)
    """probability of a slip; None leaves the person's own"""
    tie_band: float | None = Field(default=None, ge=0)
    """images closer in worth than this are a tie; None leaves the person's own"""
    side_bias: float | None = None
    """worth that the left image gets for nothing; None leaves the person's own"""
    tastes: dict[str, float] | None = None
    """what the person likes that no prompt says, with weights; None leaves the person's own"""


class SimulatedJudge:
    """Satisfies `types.protocols.Judge` for pairs; ``person.choose(prompt, (left, right))`` -> (choice, seconds)."""

    def __init__(self, name: str, person: Any, settings: Settings) -> None:
        self.name = name
        self.person = person
        self.settings = settings

    def check_prompt(self, prompt: Prompt, picture: Image) -> None:
        """Raises InputError for a prompt that the world cannot read, whatever the picture is."""
        self.person.choose(prompt, (picture, picture))

    def compare(self, prompt: Prompt, samples: Sequence[Sample], images: Sequence[Image]) -> Feedback:
        """Raises InputError for a prompt that the world cannot read and for other than two images."""
        if len(samples) != 2:
            raise InputError(f"{self.name} compares two images, not {len(samples)}; ask for pairs")
        shown = sides(samples, self.settings.seed)
        on_screen, seconds = self.person.choose(prompt, tuple(images[shown.index(side)] for side in (0, 1)))
        choice = on_screen if shown[0] == 0 else OTHER[on_screen]
        return Feedback(
            kind="pair",
            judge=self.name,
            prompt_id=prompt.id,
            sample_ids=tuple(sample.id for sample in samples),
            choice=choice,
            values=PAIR_VALUES[choice],
            sides=shown,
            seconds=seconds,
        )


def judge(argument: str, settings: Settings | None = None) -> SimulatedJudge:
    """``argument`` is a world with a module ``simulated`` that has a ``Person``, for example ``shapes``."""
    settings = settings or Settings()
    if not _has_people(argument):
        raise InputError(f"no world {argument!r} with simulated people; type --judge simulated:shapes")
    people = import_module(f"{world(argument).__name__}.simulated")
    person = people.Person(**settings.model_dump(exclude_none=True))
    who = f"simulated:{argument}" + (f"#{settings.seed}" if settings.seed else "")  # another seed is another person
    who += differing(person, people.Person(), [knob for knob in Settings.model_fields if knob != "seed"])
    return SimulatedJudge(who, person, settings)


def _has_people(argument: str) -> bool:
    if split_reference(f"{argument}:") is None or not hasattr(world(argument), "__path__"):
        return False
    return find_spec(f"{world(argument).__name__}.simulated") is not None
