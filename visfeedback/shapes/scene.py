"""What a picture of this world can hold, and the geometry of its shapes.

Lengths are pixels of a 64 x 64 image, x to the right and y down, the origin at the top left corner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZE = 64

Array = NDArray[np.floating]

OBJECT_COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 225, 50),
    "green": (50, 170, 70),
    "blue": (45, 85, 220),
    "purple": (145, 60, 190),
}
BACKGROUND_COLORS: dict[str, tuple[int, int, int]] = {
    "black": (18, 18, 18),
    "gray": (128, 128, 128),
    "white": (242, 242, 242),
    "brown": (110, 70, 45),
}
OUTLINE_SHADE = 0.7  # an outline is the object's own colour, this much darker

SQUARE_SIDE = 0.88  # half side / radius
TRIANGLE_BASE = 1.05  # half base / radius
TRIANGLE_FOOT = 0.85  # distance of the base below the centre / radius; the tip is one radius above
CROSS_ARM = 0.36  # half thickness of an arm / radius


def _circle(x: Array, y: Array, r: float) -> Array:
    return np.hypot(x, y) - r


def _square(x: Array, y: Array, r: float) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - SQUARE_SIDE * r


def _triangle(x: Array, y: Array, r: float) -> Array:
    height, base = (1 + TRIANGLE_FOOT) * r, TRIANGLE_BASE * r
    slant = (height * np.abs(x) - base * (y + r)) / np.hypot(height, base)
    return np.maximum(y - TRIANGLE_FOOT * r, slant)


def _cross(x: Array, y: Array, r: float) -> Array:
    wide, thin = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(wide - r, thin - CROSS_ARM * r)


@dataclass(frozen=True)
class Shape:
    """``distance(x, y, radius)`` is negative inside, about pixels from the edge; area = ``area`` * radius^2."""

    distance: Callable[[Array, Array, float], Array]
    area: float
    centroid_y: float = 0.0  # of the filled shape below its centre / radius


SHAPES: dict[str, Shape] = {
    "circle": Shape(_circle, float(np.pi)),
    "square": Shape(_square, (2 * SQUARE_SIDE) ** 2),
    "triangle": Shape(_triangle, TRIANGLE_BASE * (1 + TRIANGLE_FOOT), (2 * TRIANGLE_FOOT - 1) / 3),
    "cross": Shape(_cross, 8 * CROSS_ARM - 4 * CROSS_ARM**2),
}

_CENTRES = np.arange(SIZE, dtype=np.float32) + 0.5


def coverage(shape: str, x: float, y: float, radius: float, grow: float = 0.0) -> Array:
    """(64, 64) share of each pixel that the shape covers, in [0, 1], anti-aliased over one pixel."""
    dx, dy = np.meshgrid(_CENTRES - x, _CENTRES - y)
    return np.clip(0.5 + grow - SHAPES[shape].distance(dx, dy, radius), 0.0, 1.0)


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float] | None = None  # the exact colour, 0-255, when it is not the palette's
    outline: bool = False


@dataclass(frozen=True)
class Scene:
    """A background and its objects."""

    background: str
    things: tuple[Thing, ...]
    background_rgb: tuple[float, float, float] | None = None
