"""Read a picture of this world back from its pixels, and hold it against a prompt.

``detect`` finds background and objects: pixels unlike the background fall into connected components, the colour of a
component is the nearest of the palette, its shape the template with the highest soft overlap. ``check`` compares what
was found with what the prompt asks for, aspect by aspect. Blurry model output gets the same treatment as crisp renders:
coverage is soft, sizes come from areas, and what looks like no known shape or colour is called ``unknown``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from visfeedback.shapes import grammar
from visfeedback.shapes.grammar import Item, Spec
from visfeedback.shapes.renderer import render
from visfeedback.shapes.scene import (
    BACKGROUND_COLORS,
    OBJECT_COLORS,
    OUTLINE_SHADE,
    SHAPES,
    SIZE,
    Scene,
    Thing,
    coverage,
)
from visfeedback.types.records import Verdict

Array = NDArray[Any]
Picture = Image.Image | Array  # PIL, or (64, 64, 3) in 0-255

ASPECTS = ("count", "shape", "color", "size", "position", "relation", "background")
FOREGROUND = 40.0  # RGB distance from the background at which a pixel belongs to an object
SMALLEST = 30  # pixels; a radius-6 triangle has 70
SPLIT_SHARE = 0.25  # a second colour with this share of a component is an object of its own
LEAST_OVERLAP = 0.6  # soft intersection over union below which a blob has no known shape
FARTHEST_COLOR = 80.0  # RGB distance above which a colour has no name
BIG_FROM = 9.25  # pixels of radius: half way between the small and the big of the renderer
BIGGER_BY = 1.15  # ratio of radii from which one object is bigger than another
CENTRE_BAND, SIDE_BAND = 8.0, 7.0  # pixels around the middle


@dataclass(frozen=True)
class Seen:
    """An object that was found. Probabilities are over the known names and feed the soft score only."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    shapes: dict[str, float]
    colors: dict[str, float]
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Sight:
    """Everything that was found in a picture."""

    background: str
    backgrounds: dict[str, float]
    background_rgb: tuple[float, float, float]
    things: tuple[Seen, ...]


# ---------------------------------------------------------------------------------------------- pixels -> Sight


def to_pixels(image: Picture) -> Array:
    """(64, 64, 3) float32 in 0-255; other sizes are resized, as the models of this world make 64 x 64."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image, np.uint8))
    picture = picture.convert("RGB")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(picture, np.float32)


def detect(image: Picture) -> Sight:
    """Find the background and up to eight objects."""
    pixels = to_pixels(image)
    ring = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[2:-2, :2].reshape(-1, 3),
                           pixels[2:-2, -2:].reshape(-1, 3)])  # fmt: skip
    behind = np.median(ring, axis=0)
    name, names = _name_color(behind, {k: [v] for k, v in BACKGROUND_COLORS.items()})
    distance = np.linalg.norm(pixels - behind, axis=-1)  # (64, 64)
    things = [_describe(pixels, distance, region) for region in _regions(pixels, distance)]
    things.sort(key=lambda seen: -seen.radius)
    return Sight(name, names, _rgb(behind), tuple(things[:8]))


def _rgb(color: Array) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in color)
    return r, g, b


_SHADES = {k: [v, tuple(c * OUTLINE_SHADE for c in v)] for k, v in OBJECT_COLORS.items()}  # fill and outline
_SHADE_ROWS = np.asarray([shade for shades in _SHADES.values() for shade in shades], np.float32)  # (12, 3)
_EIGHT = np.ones((3, 3), bool)


def _name_color(color: Array, palette: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Nearest name, or ``unknown`` when all are far; and a softmax over distances / 12."""
    distances = {k: min(float(np.linalg.norm(color - np.asarray(p))) for p in shades) for k, shades in palette.items()}
    nearest = min(distances, key=lambda k: distances[k])
    weights = {k: np.exp(-(d - distances[nearest]) / 12) for k, d in distances.items()}
    total = sum(weights.values())
    known = 1.0 if distances[nearest] < FARTHEST_COLOR else 0.3  # a colour without a name convinces nobody
    return (
        nearest if distances[nearest] < FARTHEST_COLOR else "unknown",
        {k: float(known * w / total) for k, w in weights.items()},
    )


def _regions(pixels: Array, distance: Array) -> list[Array]:
    """Boolean masks of the objects: connected components, divided where two colours touch."""
    labels, count = _components(distance > FOREGROUND)
    regions: list[Array] = []
    for number in range(1, count + 1):
        region = labels == number
        if region.sum() >= SMALLEST:
            regions += _split_colors(pixels, region)
    return regions


def _components(mask: Array) -> tuple[Array, int]:
    """Connected components, numbered from 1, side by side and above each other but not across corners."""
    found: Any = ndimage.label(mask)
    return found[0], int(found[1])


def _core(region: Array) -> Array:
    """The region without its blurred rim, as far as something is left of it."""
    for depth in (2, 1):
        core = np.asarray(ndimage.binary_erosion(region, _EIGHT, iterations=depth))
        if core.sum() >= 12:
            return core
    return region


def _split_colors(pixels: Array, region: Array) -> list[Array]:
    core = _core(region)
    spots = np.argwhere(core)
    shades = np.linalg.norm(pixels[core][:, None] - _SHADE_ROWS, axis=-1).argmin(1) // 2  # (pixels,) colour number
    shares = np.bincount(shades, minlength=len(OBJECT_COLORS))
    present = np.flatnonzero((shares >= SPLIT_SHARE * len(spots)) & (shares >= 12))
    if len(present) < 2:
        return [region]
    seeds = np.zeros(region.shape, np.int32)
    for order, number in enumerate(present, 1):
        own = spots[shades == number]
        seeds[own[:, 0], own[:, 1]] = order
    nearest: Any = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    owner = seeds[tuple(nearest)]
    return [part for order in range(1, len(present) + 1) if (part := region & (owner == order)).sum() >= SMALLEST]


def _describe(pixels: Array, distance: Array, region: Array) -> Seen:
    color = np.median(pixels[_core(region)], axis=0)
    name, names = _name_color(color, _SHADES)
    contrast = max(float(np.median(distance[_core(region)])), 1.0)
    near: Array = np.asarray(ndimage.binary_dilation(region, _EIGHT, iterations=2))
    # Soft coverage; only this component's surroundings, half of what belongs to nobody else.
    cover = np.where(region | (near & (distance <= FOREGROUND)), np.clip(distance / contrast, 0, 1), 0)
    area = float(cover.sum())
    rows, columns = np.indices((SIZE, SIZE)) + 0.5
    x, y = float((cover * columns).sum() / area), float((cover * rows).sum() / area)
    overlaps = {shape: _overlap(cover, shape, x, y, area) for shape in SHAPES}
    best = max(overlaps, key=lambda s: overlaps[s])
    weights = {s: np.exp((o - overlaps[best]) / 0.05) for s, o in overlaps.items()}
    total = sum(weights.values())
    sure = min(1.0, overlaps[best] / 0.9)
    radius = float(np.sqrt(area / SHAPES[best].area))
    return Seen(
        shape=best if overlaps[best] >= LEAST_OVERLAP else "unknown",
        color=name,
        x=x,
        y=y - SHAPES[best].centroid_y * radius,
        radius=radius,
        shapes={s: float(sure * w / total) for s, w in weights.items()},
        colors=names,
        rgb=_rgb(color),
    )


def _overlap(cover: Array, shape: str, x: float, y: float, area: float) -> float:
    """Soft intersection over union with the template of the same area and centroid."""
    radius = float(np.sqrt(area / SHAPES[shape].area))
    template = coverage(shape, x, y - SHAPES[shape].centroid_y * radius, radius)
    return float(np.minimum(cover, template).sum() / np.maximum(cover, template).sum())


# --------------------------------------------------------------------------------------------- Sight against Spec


def sight_of(scene: Scene) -> Sight:
    """What a perfect eye sees in a scene: the reference that the verifier is measured against."""
    things = tuple(
        Seen(t.shape, t.color, t.x, t.y, t.radius, {t.shape: 1.0}, {t.color: 1.0}, (0.0, 0.0, 0.0))
        for t in scene.things
    )
    return Sight(scene.background, {scene.background: 1.0}, (0.0, 0.0, 0.0), things)


def check(spec: Spec, sight: Sight) -> Verdict:
    """Every aspect the prompt speaks of, true or false, and their mean soft value in [0, 1]."""
    slots = [item for item in spec.items for _ in range(item.count)]
    matched = _match_related(spec, sight.things) if spec.relation else _match(slots, sight.things)
    soft: dict[str, float] = {"count": float(np.exp(-abs(len(sight.things) - len(slots))))}
    hard: dict[str, bool] = {"count": len(sight.things) == len(slots)}
    _check_items(slots, matched, hard, soft)
    if spec.background:
        hard["background"] = sight.background == spec.background
        soft["background"] = sight.backgrounds.get(spec.background, 0.0)
    if spec.place:
        soft["position"] = _logistic(_place_margin(spec.place, matched[0])) if matched[0] else 0.0
        hard["position"] = soft["position"] > 0.5
    if spec.relation:
        soft["relation"] = _relation(spec.relation, matched[0], matched[1])
        hard["relation"] = soft["relation"] > 0.5
    return Verdict(all(hard.values()), float(np.mean(list(soft.values()))), hard)


def _match(slots: list[Item], things: tuple[Seen, ...]) -> list[Seen | None]:
    """The best object for each thing asked for: right in most respects, then surest."""
    fit = np.asarray([[_fit(slot, seen) for seen in things] for slot in slots], float).reshape(len(slots), len(things))
    matched: list[Seen | None] = [None] * len(slots)
    for slot, thing in zip(*linear_sum_assignment(-fit), strict=True):
        matched[int(slot)] = things[int(thing)]
    return matched


def _match_related(spec: Spec, things: tuple[Seen, ...]) -> list[Seen | None]:
    """The two objects that fit best by name and, among those, hold the relation best."""
    slots = list(spec.items)
    if len(things) < 2:
        return _match(slots, things)

    def worth(pair: tuple[Seen, ...]) -> tuple[float, float]:
        return sum(map(_named, slots, pair)), _relation(str(spec.relation), pair[0], pair[1])

    return list(max(itertools.permutations(things, 2), key=worth))


def _named(slot: Item, seen: Seen) -> float:
    """In how many respects an object is what was asked for; size counts half."""
    names = 1.0 * (seen.shape == slot.shape) + 1.0 * (slot.color in (None, seen.color))
    return names + 0.5 * (slot.size in (None, _size(seen)))


def _fit(slot: Item, seen: Seen) -> float:
    return _named(slot, seen) + 0.01 * seen.shapes.get(slot.shape, 0.0) + 0.0001 * seen.radius


def _size(seen: Seen) -> str:
    return "big" if seen.radius >= BIG_FROM else "small"


def _check_items(slots: list[Item], matched: list[Seen | None], hard: dict[str, bool], soft: dict[str, float]) -> None:
    pairs = list(zip(slots, matched, strict=True))
    hard["shape"] = all(seen is not None and seen.shape == slot.shape for slot, seen in pairs)
    soft["shape"] = float(np.mean([seen.shapes.get(slot.shape, 0.0) if seen else 0.0 for slot, seen in pairs]))
    painted = [(slot, seen) for slot, seen in pairs if slot.color]
    if painted:
        hard["color"] = all(seen is not None and seen.color == slot.color for slot, seen in painted)
        values = [seen.colors.get(str(slot.color), 0.0) if seen else 0.0 for slot, seen in painted]
        soft["color"] = float(np.mean(values))
    sized = [(slot, seen) for slot, seen in pairs if slot.size]
    if sized:
        hard["size"] = all(seen is not None and _size(seen) == slot.size for slot, seen in sized)
        signs = {"big": 1.0, "small": -1.0}
        margins = [signs[str(slot.size)] * (seen.radius - BIG_FROM) if seen else -9.0 for slot, seen in sized]
        soft["size"] = float(np.mean([_logistic(m, 0.7) for m in margins]))


def _logistic(margin: float, width: float = 2.0) -> float:
    return float(1 / (1 + np.exp(-margin / width)))


def _place_margin(place: str, seen: Seen | None) -> float:
    """Pixels by which the centre is on the asked side; negative when it is not."""
    assert seen is not None
    middle = SIZE / 2
    if place == "in the center":
        return CENTRE_BAND - max(abs(seen.x - middle), abs(seen.y - middle))
    along = seen.x if place in ("on the left", "on the right") else seen.y
    toward = middle - along if place in ("on the left", "at the top") else along - middle
    return toward - SIDE_BAND


def _relation(relation: str, first: Seen | None, second: Seen | None) -> float:
    """Soft truth in [0, 1]; above one half is true."""
    if first is None or second is None:
        return 0.0
    if relation == grammar.SAME_COLOR:
        if first.color != second.color or first.color == "unknown":
            return 0.0
        return 0.5 + 0.5 * float(sum(first.colors.get(c, 0.0) * p for c, p in second.colors.items()))
    if relation in grammar.COMPARISONS:
        ratio = first.radius / second.radius if relation == "bigger than" else second.radius / first.radius
        return _logistic((ratio - BIGGER_BY) / 0.1)
    dx, dy = second.x - first.x, second.y - first.y
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    sign = 1 if relation in ("left of", "above") else -1
    return _logistic(sign * along - abs(across))


# ------------------------------------------------------------------------------------------------------ for others


class ShapesVerifier:
    """``verify(prompt text, image)``: a program that knows right from wrong in this world."""

    name = "verifier:shapes"

    def verify(self, prompt: str, image: Image.Image) -> Verdict:
        """Raises InputError for a prompt that this world cannot say."""
        return check(grammar.read(prompt), detect(image))


def scene_of(sight: Sight) -> Scene:
    """The scene that was seen, in the colours that were seen."""
    things = tuple(Thing(t.shape, t.color, t.x, t.y, t.radius, t.rgb) for t in sight.things if t.shape != "unknown")
    return Scene(sight.background, things, sight.background_rgb)


def render_distance(image: Picture) -> float:
    """RMS distance in [0, 1] of the image to the render of the scene that the verifier reads from it; 0 is clean."""
    pixels = to_pixels(image)
    drawn = render(scene_of(detect(pixels))).astype(np.float32)
    return float(np.sqrt(np.mean(((pixels - drawn) / 255) ** 2)))
