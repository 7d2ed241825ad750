"""People of this world: the verifier with noise, ties and a side they favour, and tastes that no prompt mentions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image

from visfeedback.plugins import InputError, nearest
from visfeedback.shapes.grammar import read
from visfeedback.shapes.scene import SIZE
from visfeedback.shapes.verify import Sight, check, detect, to_pixels
from visfeedback.types.records import Prompt

WARM = ("red", "orange", "yellow")
DARK = ("black", "brown")


def _bigness(sight: Sight) -> float:
    """Mean radius of the objects, 6 to 13 pixels mapped to 0 to 1; 0 without objects."""
    radii = [thing.radius for thing in sight.things]
    return float(np.clip((np.mean(radii) - 6) / 7, 0, 1)) if radii else 0.0


def _darkness(sight: Sight) -> float:
    return float(sum(sight.backgrounds.get(name, 0.0) for name in DARK))


def _warmth(sight: Sight) -> float:
    shares = [sum(thing.colors.get(name, 0.0) for name in WARM) for thing in sight.things]
    return float(np.mean(shares)) if shares else 0.0


TASTES = {"big": _bigness, "dark": _darkness, "warm": _warmth}


def taste_of(image: Image.Image, tastes: dict[str, float]) -> float:
    """Weighted sum of how far the picture meets each taste, every taste in [0, 1] before its weight."""
    unknown = sorted(set(tastes) - set(TASTES))
    if unknown:
        raise InputError(f"no taste {unknown[0]!r}{nearest(unknown[0], TASTES)}")
    sight = _seen(image)
    return sum(weight * TASTES[name](sight) for name, weight in tastes.items())


def _seen(image: Image.Image) -> Sight:
    return _found(to_pixels(image).astype(np.uint8).tobytes())


@lru_cache(maxsize=4096)  # a picture stands in many pairs, which come prompt by prompt in turn; 12 KiB each
def _found(pixels: bytes) -> Sight:
    return detect(np.frombuffer(pixels, np.uint8).reshape(SIZE, SIZE, 3))


@dataclass(frozen=True)
class Person:
    """Chooses between two pictures; the same seed, prompt and pictures always give the same answer.

    What a picture is worth to a person: 1 for everything right plus the verifier's soft score, so 0 to 2, plus tastes.
    """

    seed: int = 0
    noise: float = 0.05
    """probability of an answer for the other side, whatever the pictures show"""
    tie_band: float = 0.08
    """differences in worth below this are ties"""
    side_bias: float = 0.02
    """worth that the left side gets for nothing"""
    tastes: dict[str, float] = field(default_factory=dict)
    """`{"dark": 0.5}`: worth added for what the prompt does not say; see TASTES"""

    def worth(self, prompt: str, image: Image.Image) -> float:
        """Raises InputError for a prompt this world cannot say."""
        verdict = check(read(prompt), _seen(image))
        return float(verdict.right) + verdict.score + (taste_of(image, self.tastes) if self.tastes else 0.0)

    def choose(self, prompt: Prompt, images: tuple[Image.Image, Image.Image]) -> tuple[str, float]:
        """``a`` for the left picture, ``b`` for the right one, or ``tie``; and the seconds it took."""
        left, right = images
        shown = b"".join(image.convert("RGB").tobytes() for image in images)
        key = hashlib.sha256(prompt.id.encode() + b":" + shown).digest()[:8]
        rng = np.random.default_rng([self.seed, int.from_bytes(key, "big")])
        gap = self.worth(prompt.text, left) + self.side_bias - self.worth(prompt.text, right)
        slip, seconds = rng.random() < self.noise, float(rng.lognormal(1.0, 0.5))
        if abs(gap) < self.tie_band and not slip:
            return "tie", seconds
        first = gap > 0 if abs(gap) >= self.tie_band else bool(rng.random() < 0.5)
        return ("a" if first != (slip and abs(gap) >= self.tie_band) else "b"), seconds
