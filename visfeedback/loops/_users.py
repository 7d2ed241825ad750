"""Who gives feedback in rounds: somebody with tastes that no prompt mentions, a verifier, a reward, or a hidden target.

A user gives each image of a prompt a number, higher is better. May import: types, rewards, shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator

from visfeedback import rewards
from visfeedback.plugins import InputError, split_reference, world
from visfeedback.types.records import Frozen, Prompt

if TYPE_CHECKING:
    from visfeedback.types.protocols import Reward


class UserSettings(Frozen):
    """Who looks at the images."""

    kind: Literal["tastes", "verifier", "reward", "target"] = "tastes"
    """tastes = a simulated person of a world; verifier = the world's program that knows right from wrong; reward = a
    reward model; target = likeness to an image that only the user knows"""
    name: str = "shapes"
    """the world, or the reward: NAME[:VARIANT][@PATH]; for target the reward whose features say how alike images are"""
    tastes: dict[str, float] = Field(default={"big": 1.0, "dark": 1.0, "warm": 1.0}, min_length=1)
    """for tastes: what is liked, with weights; they share 1, so that a preference lies in [0, 1]"""
    targets: str = "model"
    """for target, where the hidden images come from: model = its own, of a seed that no round has; a world such as
    shapes = its renderer, which fills in by chance what the prompt leaves open; else a folder or a .jsonl list of
    images with their prompts"""
    met: float = 0.5
    """an image of at least this preference meets the user's wish"""

    @model_validator(mode="after")
    def _positive(self) -> UserSettings:
        if min(self.tastes.values()) < 0 or not sum(self.tastes.values()) > 0:
            raise ValueError(f"tastes = {self.tastes}; expected weights of 0 or more, at least one above 0")
        return self


Wish = Callable[[Prompt, Sequence[Image.Image]], list[float]]
"""Preferences of images of one prompt."""


@dataclass(frozen=True)
class Features:
    """How alike images are: cosines of a reward's image features."""

    reward: Reward

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors (N, D). Raises InputError for a reward without one vector for an image."""
        made: list[Any] = [None] * len(images)
        for rows, pixels in rewards.by_size([self.reward.preprocess(image) for image in images]):
            vectors = self.reward.encode_images(pixels).float().cpu()
            if vectors.ndim != 2:
                raise InputError(f"reward {self.reward.name} has no vector for an image; take clipscore or shapes_clip")
            for row, vector in zip(rows, vectors, strict=True):
                made[row] = (vector / vector.norm().clamp_min(1e-12)).numpy()
        return np.stack(made)


def invite(settings: UserSettings, target: Callable[[Prompt], Image.Image], device: str) -> Wish:
    """The user's preferences; ``target`` draws the hidden image of a prompt. Raises InputError for an unknown name."""
    if settings.kind == "reward":
        reward = rewards.load(settings.name, device)
        return lambda prompt, images: rewards.score(reward, images, [prompt.text] * len(images)).tolist()
    if settings.kind == "target":
        features = Features(rewards.load(settings.name, device))
        return lambda prompt, images: (features(images) @ features([target(prompt)])[0]).tolist()
    if split_reference(f"{settings.name}:") is None:
        raise InputError(f"no world {settings.name!r}; expected shapes")
    place = world(settings.name)
    if settings.kind == "verifier":
        verifier = place.verifier()
        return lambda prompt, images: [verifier.verify(prompt.text, image).score for image in images]
    people, total = import_module(f"{place.__name__}.simulated"), sum(settings.tastes.values())
    people.taste_of(Image.new("RGB", (64, 64)), settings.tastes)  # an unknown taste is an error before work begins
    return lambda prompt, images: [people.taste_of(image, settings.tastes) / total for image in images]
