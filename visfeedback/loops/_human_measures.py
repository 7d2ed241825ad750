"""What is measured of the images that people choose among. May import: types, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

from PIL import Image

from visfeedback.plugins import split_reference, world
from visfeedback.types.records import Sample


def right(model: str, samples: Sequence[Sample], images: Sequence[Image.Image]) -> float | None:
    """Share of the images of which all the prompt says holds; None where the model's world has no verifier."""
    place = split_reference(model)
    if place is None or not hasattr(world(place[0]), "verifier"):
        return None
    verifier = world(place[0]).verifier()
    return sum(verifier.verify(s.prompt, i).right for s, i in zip(samples, images, strict=True)) / len(images)


def taste(judge: str, tastes: Mapping[str, float] | None, images: Sequence[Image.Image]) -> float | None:
    """Mean of what the simulated person likes besides; None without one, or without tastes."""
    kind, _, place = judge.partition(":")
    if not tastes or kind != "simulated":
        return None
    people = import_module(f"{world(place).__name__}.simulated")
    return sum(people.taste_of(image, tastes) for image in images) / len(images)
