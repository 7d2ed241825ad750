"""The verifier reads renders without error and stays honest where a picture is bad."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from visfeedback import shapes
from visfeedback.shapes import grammar, measure
from visfeedback.shapes.renderer import draw_scene, render, render_image
from visfeedback.shapes.scene import SHAPES, Scene, Thing, coverage
from visfeedback.shapes.verify import check, detect, render_distance, sight_of


@pytest.mark.parametrize("shape", SHAPES)
def test_area_constant_of_every_shape_is_its_covered_area(shape: str) -> None:
    """The soft coverage adds up to area * r^2; at r = 10 the anti-aliased rim is good to 1%."""
    assert coverage(shape, 32, 32, 10).sum() == pytest.approx(SHAPES[shape].area * 100, rel=0.01)


@pytest.mark.parametrize("category", grammar.CATEGORIES)
def test_scenes_hold_what_their_prompt_says(category: str) -> None:
    rng = np.random.default_rng(1)
    specs = grammar.specs(category)
    for _ in range(20):
        spec = specs[rng.integers(len(specs))]
        assert check(spec, sight_of(draw_scene(spec, rng))).right


@pytest.mark.slow
def test_error_rates_on_5000_fresh_renders() -> None:
    """Half against the own prompt, half against one changed word: both error rates at most 0.5% in every row."""
    counts = measure.measure(5000, seed=3)
    assert len(counts) == 7 + 7
    for name, count in counts.items():
        assert count.right >= 100 and count.wrong >= 80, name
        assert count.false_negatives <= 0.005, name
        assert count.false_positives <= 0.005, name


def test_a_wrong_world_is_seen_as_wrong() -> None:
    """Each prompt differs from the scene in one aspect, and just this aspect is false."""
    scene = Scene("black", (Thing("circle", "red", 16, 20, 7), Thing("square", "blue", 46, 40, 12)))
    verifier, image = shapes.verifier(), render_image(scene)
    assert verifier.verify("a red circle left of a blue square", image).right
    wrong = {
        "a red circle and a green square": "color",
        "a red cross and a blue square": "shape",
        "a red circle right of a blue square": "relation",
        "a red circle bigger than a blue square": "relation",
        "a red circle": "count",
    }
    for prompt, aspect in wrong.items():
        verdict = verifier.verify(prompt, image)
        assert [name for name, value in verdict.aspects.items() if not value] == [aspect], prompt
        assert verdict.score < verifier.verify("a red circle left of a blue square", image).score


@pytest.mark.parametrize("radius", [0.5, 1.0])
def test_a_little_blur_changes_no_verdict(radius: float) -> None:
    rng = np.random.default_rng(2)
    right = 0
    for i in range(70):
        specs = grammar.specs(grammar.CATEGORIES[i % 7])
        spec = specs[rng.integers(len(specs))]
        blurred = render_image(draw_scene(spec, rng)).filter(ImageFilter.GaussianBlur(radius))
        right += check(spec, detect(blurred)).right
    assert right >= 68


@pytest.mark.parametrize("picture", ["noise", "flat", "mush"])
def test_bad_pictures_are_never_right(picture: str) -> None:
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(pixels if picture != "flat" else np.full_like(pixels, 128))
    if picture == "mush":
        image = image.filter(ImageFilter.GaussianBlur(6))
    assert not any(shapes.verifier().verify(p.text, image).right for p in shapes.prompts("heldout:70"))


def test_two_colours_that_touch_are_two_objects() -> None:
    scene = Scene("white", (Thing("square", "red", 22, 32, 10), Thing("square", "blue", 39, 32, 10)))
    assert sorted(t.color for t in detect(render(scene)).things) == ["blue", "red"]


def test_sizes_and_places_are_read_to_a_pixel() -> None:
    for shape in SHAPES:
        for outline in (False, True):
            seen = detect(render(Scene("gray", (Thing(shape, "green", 20.3, 40.6, 9, outline=outline),)))).things[0]
            assert (seen.x, seen.y, seen.radius) == pytest.approx((20.3, 40.6, 9), abs=0.6), (shape, outline)


def test_other_image_modes_and_sizes_are_read() -> None:
    scene = Scene("brown", (Thing("triangle", "yellow", 30, 30, 11),))
    image = render_image(scene).resize((512, 512), Image.Resampling.NEAREST).convert("RGBA")
    assert shapes.verifier().verify("a big yellow triangle", image).right


def test_render_distance_is_small_for_renders_and_large_for_mush() -> None:
    rng = np.random.default_rng(5)
    spec = grammar.read("a red circle and a blue square")
    image = render_image(draw_scene(spec, rng))
    assert render_distance(image) < 0.03
    assert render_distance(image.filter(ImageFilter.GaussianBlur(4))) > 2 * render_distance(image)
