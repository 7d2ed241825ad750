"""Scenes to pixels, and prompts to scenes with everything the prompt leaves open filled in by chance."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from visfeedback.shapes.grammar import Item, Spec
from visfeedback.shapes.scene import BACKGROUND_COLORS, OBJECT_COLORS, OUTLINE_SHADE, SIZE, Scene, Thing, coverage

SMALL = (6.0, 7.5)
BIG = (11.0, 13.5)
ANY_SIZE = (7.0, 11.0)
CROWD_SIZE = (6.0, 9.0)  # three or four objects must fit
MARGIN = 2.5  # pixels between an object and the edge of the image
GAP = 4.0  # pixels between two objects
OUTLINE_WIDTH = 1.2
RGB = tuple[float, float, float]


def render(scene: Scene) -> NDArray[np.uint8]:
    """(64, 64, 3) RGB, objects painted in their order."""
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[:] = scene.background_rgb or BACKGROUND_COLORS[scene.background]
    for thing in scene.things:
        _paint(canvas, thing)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def render_image(scene: Scene) -> Image.Image:
    return Image.fromarray(render(scene))


def object_mask(scene: Scene) -> NDArray[np.float32]:
    """(64, 64) in [0, 1]: where the objects are."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    for thing in scene.things:
        mask = np.maximum(mask, coverage(thing.shape, thing.x, thing.y, thing.radius))
    return mask


def _paint(canvas: NDArray[np.float32], thing: Thing) -> None:
    color = np.asarray(thing.rgb or OBJECT_COLORS[thing.color], np.float32)
    cover = coverage(thing.shape, thing.x, thing.y, thing.radius)[..., None]
    fill = color
    if thing.outline:
        inner = coverage(thing.shape, thing.x, thing.y, thing.radius, grow=-OUTLINE_WIDTH)[..., None]
        fill = inner * color + (1 - inner) * color * OUTLINE_SHADE
    canvas[:] = cover * fill + (1 - cover) * canvas


def draw_scene(spec: Spec, rng: Generator) -> Scene:
    """A scene for which ``spec`` holds, with room to spare; what the prompt does not say is drawn at random."""
    while True:
        scene = _try_scene(spec, rng)
        if scene is not None:
            return scene


def _try_scene(spec: Spec, rng: Generator) -> Scene | None:
    background = spec.background or str(rng.choice(list(BACKGROUND_COLORS)))
    outline = bool(rng.random() < 0.3)
    slots = [item for item in spec.items for _ in range(item.count)]
    colors = _colors(spec, rng)
    radii = _radii(spec, slots, rng)
    centres = _place(spec, radii, rng)
    if centres is None:
        return None
    things = tuple(
        Thing(slot.shape, color, x, y, radius, _jitter(OBJECT_COLORS[color], 12, rng), outline)
        for slot, color, (x, y), radius in zip(slots, colors, centres, radii, strict=True)
    )
    return Scene(background, things, _jitter(BACKGROUND_COLORS[background], 8, rng))


def _jitter(rgb: tuple[int, int, int], amount: float, rng: Generator) -> RGB:
    r, g, b = np.clip(np.asarray(rgb) + rng.uniform(-amount, amount, 3), 0, 255)
    return float(r), float(g), float(b)


def _colors(spec: Spec, rng: Generator) -> list[str]:
    """One colour a slot; the objects of one item share theirs."""
    palette = list(OBJECT_COLORS)
    colors: list[str] = []
    for item in spec.items:
        colors += [item.color or str(rng.choice(palette))] * item.count
    if spec.relation == "the same color as":
        colors = [colors[0]] * len(colors)
    return colors


def _radii(spec: Spec, slots: list[Item], rng: Generator) -> list[float]:
    if spec.relation in ("bigger than", "smaller than"):
        pair = [rng.uniform(*BIG), rng.uniform(*SMALL)]
        return pair if spec.relation == "bigger than" else pair[::-1]
    ranges = {"small": SMALL, "big": BIG, None: ANY_SIZE if len(slots) <= 2 else CROWD_SIZE}
    if len(slots) > 2:  # objects of one kind are about equally big
        base = rng.uniform(*CROWD_SIZE)
        return [float(np.clip(base + rng.uniform(-0.7, 0.7), *CROWD_SIZE)) for _ in slots]
    return [float(rng.uniform(*ranges[slot.size])) for slot in slots]


def _place(spec: Spec, radii: list[float], rng: Generator) -> list[tuple[float, float]] | None:
    """Centres without overlap that fit the place or the relation, or None when these radii found no room."""
    for _ in range(60):
        centres = [_centre(spec.place, radius, rng) for radius in radii]
        if _apart(centres, radii) and _related(spec.relation, centres):
            return centres
    return None


def _centre(place: str | None, radius: float, rng: Generator) -> tuple[float, float]:
    low, high = radius + MARGIN, SIZE - radius - MARGIN
    x, y = rng.uniform(low, high), rng.uniform(low, high)
    near = max(low, 21.0)
    if place == "on the left":
        x = rng.uniform(low, near)
    elif place == "on the right":
        x = SIZE - rng.uniform(low, near)
    elif place == "at the top":
        y = rng.uniform(low, near)
    elif place == "at the bottom":
        y = SIZE - rng.uniform(low, near)
    elif place == "in the center":
        x, y = rng.uniform(28, 36), rng.uniform(28, 36)
    return float(x), float(y)


def _apart(centres: list[tuple[float, float]], radii: list[float]) -> bool:
    """Bounding boxes keep the gap; boxes, so that the corners of squares do not touch."""
    for i, (x, y) in enumerate(centres):
        for j in range(i):
            reach = 1.05 * (radii[i] + radii[j]) + GAP
            if max(abs(x - centres[j][0]), abs(y - centres[j][1])) < reach:
                return False
    return True


def _related(relation: str | None, centres: list[tuple[float, float]]) -> bool:
    if relation not in ("left of", "right of", "above", "below"):
        return True
    (x0, y0), (x1, y1) = centres[:2]
    dx, dy = x1 - x0, y1 - y0
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    sign = 1 if relation in ("left of", "above") else -1
    return sign * along > 1.4 * abs(across)
