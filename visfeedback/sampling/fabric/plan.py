"""What each branch of a call attends to, and how much: likes in the positive one, dislikes in the negative one.

May import: torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visfeedback.sampling.fabric.bank import Layers
from visfeedback.sampling.fabric.references import Reference
from visfeedback.sampling.fabric.schedule import capped
from visfeedback.sampling.fabric.seen import Seen
from visfeedback.sampling.fabric.settings import FabricSettings
from visfeedback.sampling.fabric.weighting import References, references

Weights = list[tuple[Reference, float]]
"""References that weigh something, with the weight of a token of theirs."""


@dataclass(frozen=True)
class Part:
    """Some rows of a call."""

    rows: slice
    toward: Weights
    away: Weights


def make_plan(
    seen: Seen, strength: float, liked: Sequence[Reference], disliked: Sequence[Reference], settings: FabricSettings
) -> list[Part]:
    """A part for each branch, in the order of its rows."""
    likes = weigh(liked, strength, settings.cap)
    dislikes = weigh(disliked, strength * settings.dislike_scale, settings.cap)
    pushing = settings.dislikes == "attention" or (settings.dislikes == "auto" and seen.negative is False)
    return [
        Part(rows, likes, dislikes if pushing else [])
        if branch == "positive"
        else Part(rows, [] if pushing else dislikes, [])
        for branch, rows in seen.branches
    ]


def weigh(refs: Sequence[Reference], strength: float, cap: float | None) -> Weights:
    """An image given twice counts twice; all together count at most ``cap``."""
    together: dict[str, tuple[Reference, float]] = {}
    for ref in refs:
        before = together[ref.id][1] if ref.id in together else 0.0
        together[ref.id] = (ref, before + ref.weight * strength)
    scaled = capped([weight for _, weight in together.values()], cap)
    return [(ref, weight) for (ref, _), weight in zip(together.values(), scaled, strict=True) if weight > 0]


def side(placed: dict[str, Layers], layer: str, weights: Weights, ratio: float) -> References | None:
    """Keys, values and weights at one layer; ``ratio``: tokens of the drawn image for one of a reference."""
    return references([placed[ref.id][layer] for ref, _ in weights], [weight * ratio for _, weight in weights])
