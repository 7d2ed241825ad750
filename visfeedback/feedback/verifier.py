"""A program that knows right from wrong as a judge: `verifier:shapes`.

An image that is right in everything beats one that is not; otherwise the soft score decides.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from visfeedback.feedback.naming import differing
from visfeedback.feedback.sides import sides
from visfeedback.plugins import InputError, split_reference, world
from visfeedback.types.records import PAIR_VALUES, Choice, Feedback, Frozen, Prompt, Sample, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

    from visfeedback.types.protocols import Verifier


class Settings(Frozen):
    seed: int = Field(default=0, ge=0)
    """decides on which side each image is shown"""
    tie_band: float = Field(default=0.02, ge=0, le=1)
    """soft scores closer than this are a tie, when both images are right or both are wrong"""


class VerifierJudge:
    """Satisfies `types.protocols.Judge`: pairs get a choice, more images a ranking (0 = best)."""

    def __init__(self, name: str, verifier: Verifier, settings: Settings) -> None:
        self.name = name
        self.verifier = verifier
        self.settings = settings

    def check_prompt(self, prompt: Prompt, picture: Image) -> None:
        """Raises InputError for a prompt that the verifier cannot read, whatever the picture is."""
        self.verifier.verify(prompt.text, picture)

    def compare(self, prompt: Prompt, samples: Sequence[Sample], images: Sequence[Image]) -> Feedback:
        """Raises InputError for a prompt that the verifier cannot read."""
        began = time.perf_counter()
        verdicts = [self.verifier.verify(prompt.text, image) for image in images]
        answer = self._choose(verdicts) if len(samples) == 2 else _rank(verdicts)
        return Feedback(
            judge=self.name,
            prompt_id=prompt.id,
            sample_ids=tuple(sample.id for sample in samples),
            sides=sides(samples, self.settings.seed),
            seconds=time.perf_counter() - began,
            **answer,
        )

    def _choose(self, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        a, b = verdicts
        choice: Choice = "a" if (a.right, a.score) > (b.right, b.score) else "b"
        if a.right == b.right and abs(a.score - b.score) <= self.settings.tie_band:
            choice = "tie"
        return {"kind": "pair", "choice": choice, "values": PAIR_VALUES[choice]}


def _rank(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Equal verdicts share a rank: the number of images that are better."""
    keys = [(verdict.right, verdict.score) for verdict in verdicts]
    return {"kind": "ranking", "values": tuple(float(sum(other > key for other in keys)) for key in keys)}


def judge(argument: str, settings: Settings | None = None) -> VerifierJudge:
    """``argument`` is a world that has a verifier, for example ``shapes``."""
    if split_reference(f"{argument}:") is None or not hasattr(world(argument), "verifier"):
        raise InputError(f"no world {argument!r} with a verifier; type --judge verifier:shapes")
    settings = settings or Settings()
    who = f"verifier:{argument}" + differing(settings, Settings(), ("tie_band",))  # the seed changes no verdict
    return VerifierJudge(who, world(argument).verifier(), settings)
