"""Two judges and their thresholds: which images pass, and which of a prompt's passing images is the best.

May import: training, types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from visfeedback.plugins import InputError
from visfeedback.training.scorer import Scorer, cannot_score, parts
from visfeedback.training.settings_online import RewardChoice
from visfeedback.types.records import Frozen, Prompt


class Judged(NamedTuple):
    """One image and its two scores, in the judges' own units."""

    prompt_id: str
    faithful: float
    beautiful: float


class Filter(Frozen):
    """Who filters."""

    faithful: str = "shapes_verifier"
    """NAME[:VARIANT][@PATH] of the judge of faithfulness: vqascore@..., shapes_verifier"""
    faithful_from: float = 0.9
    """least score, in its own units; the paper's 0.9 is a share of right answers"""
    beautiful: str = "shapes_clip"
    """the second judge: aesthetic, pickscore, ..."""
    beautiful_from: float = 0.6
    """least score, in its own units"""
    beautiful_weight: float = Field(default=1.0, ge=0)
    """of the second judge's score in the sum that ranks the images of a prompt; for scores of another spread"""

    def load(self, prompts: Sequence[Prompt], device: str = "cpu") -> tuple[Scorer, Scorer]:
        """Both judges, shown every prompt, so that one they cannot read is an error before anything is drawn."""
        return _judge("faithful", self.faithful, prompts, device), _judge("beautiful", self.beautiful, prompts, device)

    def passes(self, one: Judged) -> bool:
        return one.faithful >= self.faithful_from and one.beautiful >= self.beautiful_from

    def sum(self, one: Judged) -> float:
        return one.faithful + self.beautiful_weight * one.beautiful

    def nothing(self, number: int, judged: Sequence[Judged]) -> str:
        """What to say when no image passes."""
        faithful, beautiful = max(one.faithful for one in judged), max(one.beautiful for one in judged)
        return (
            f"round {number}: none of {len(judged)} images has {self.faithful} {self.faithful_from:g} and "
            f"{self.beautiful} {self.beautiful_from:g} (highest {faithful:.3g} and {beautiful:.3g}); lower "
            "--filter.faithful-from or --filter.beautiful-from, or draw more: --loop.per-prompt"
        )


def _judge(role: str, name: str, prompts: Sequence[Prompt], device: str) -> Scorer:
    """Raises InputError for prompts that it can never score."""
    found = Scorer(RewardChoice(name=name), device)
    for prompt in prompts:
        found.reward.encode_texts([prompt.text])
        why = next((why for part in parts(found.reward) if (why := cannot_score(part, prompt.text))), "")
        if why:
            raise InputError(
                f"filter.{role} = {name} cannot score images of {prompt.text!r}: {why}; leave it out of "
                f"--data.prompts, or choose another judge: --filter.{role} NAME"
            )
    return found


def passing(judged: Sequence[Judged], settings: Filter) -> list[float]:
    """For each image 0 when it does not pass, else 1 to 2: 1 plus its place among the passing images of its prompt by
    the weighted sum of both scores, the best 2. The first of equal ones is the best."""
    groups: dict[str, list[int]] = {}
    for row, one in enumerate(judged):
        if settings.passes(one):
            groups.setdefault(one.prompt_id, []).append(row)
    scores = [0.0] * len(judged)
    for rows in groups.values():
        ordered = sorted(rows, key=lambda row: -settings.sum(judged[row]))
        for place, row in enumerate(ordered):
            scores[row] = 2.0 - place / len(rows)
    return scores
