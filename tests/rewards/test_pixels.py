"""Preprocessing of CLIP models against the libraries that published it, on pictures of every mode and size."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from visfeedback.plugins import InputError
from visfeedback.rewards._pixels import Recipe, crop_or_pad, from_open_clip, from_transformers

WORLD = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures" / "clip_world.py")))
IMAGES = WORLD.images()
# Spare pixels 1, 2, 3, 5, 7 after resizing: the libraries round half a pixel differently.
IMAGES |= {f"odd{width}": WORLD.picture((width, 64), width) for width in (66, 68, 70, 74, 78)}


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("name", IMAGES)
def test_equals_the_processor_of_transformers(name):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    expected = processor(images=IMAGES[name], return_tensors="pt")["pixel_values"][0]
    recipe = from_transformers(processor.to_dict(), 32, "thing")
    assert torch.equal(recipe.preprocess(IMAGES[name]), expected)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_equals_the_transform_of_open_clip(name, mode):
    from open_clip.transform import image_transform

    recipe = from_open_clip({"resize_mode": mode, "fill_color": 7, "mean": [0.5, 0.4, 0.3]}, 32, "thing")
    transform = image_transform(32, is_train=False, mean=(0.5, 0.4, 0.3), resize_mode=mode, fill_color=7)
    assert torch.equal(recipe.preprocess(IMAGES[name]), transform(IMAGES[name]))


def test_transparency_lies_over_white_in_one_library_and_is_dropped_in_the_other():
    """A red picture, wholly transparent: (255, 255, 255) over white; open_clip keeps (255, 0, 0)."""
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert Recipe("transformers", (32, 32), **plain).preprocess(image)[:, 0, 0].tolist() == [1, 1, 1]
    assert Recipe("open_clip", (32, 32), **plain).preprocess(image)[:, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("library", "mode"),
    [("transformers", "shortest"), ("transformers", "squash"), ("open_clip", "shortest"), ("open_clip", "squash"),
     ("open_clip", "longest")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["square", "exact", "wide", "tall", "large", "small", "odd66", "odd70", "odd78"])
def test_from_pixels_is_the_same_recipe(library, mode, name):
    """Pillow rounds to 8 bits after each pass and cuts overshoot between them: at most 2 of 255 on soft pictures.

    A crop that is off by one pixel would differ by tens.
    """
    recipe = Recipe(library, (32, 32), resize=mode)
    exact, free = recipe.preprocess(IMAGES[name]), recipe.from_pixels(_pixels(IMAGES[name]))[0]
    assert free.shape == (3, 32, 32)
    apart = ((exact - free) * torch.tensor(recipe.std).view(3, 1, 1) * 255).abs()
    assert apart.max() <= 2
    if name == "exact":
        assert apart.max() <= 1e-4


def test_from_pixels_keeps_the_gradient():
    pixels = _pixels(IMAGES["wide"]).requires_grad_(True)
    Recipe("open_clip", (32, 32)).from_pixels(pixels).square().sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad != 0).float().mean() > 0.2


@pytest.mark.parametrize(("height", "width"), [(40, 51), (32, 37), (20, 35), (9, 9), (33, 31)])
def test_crop_or_pad_equals_torchvision(height, width):
    pixels = torch.rand(3, height, width)
    assert torch.equal(crop_or_pad(pixels, (32, 32)), tv.center_crop(pixels, [32, 32]))


def test_the_identity_says_everything_that_changes_the_result():
    recipes = [
        Recipe("transformers", (32, 32)), Recipe("open_clip", (32, 32)), Recipe("open_clip", (48, 48)),
        Recipe("open_clip", (32, 32), resize="squash"), Recipe("open_clip", (32, 32), resize="longest"),
        Recipe("open_clip", (32, 32), resize="longest", fill=1), Recipe("transformers", (32, 32), edge=40),
        Recipe("open_clip", (32, 32), interpolation="bilinear"), Recipe("open_clip", (32, 32), mean=(0.5,) * 3),
        Recipe("open_clip", (32, 32), std=(0.5,) * 3),
    ]  # fmt: skip
    assert len({recipe.id for recipe in recipes}) == len(recipes)


def test_older_files_give_plain_numbers():
    """transformers wrote `size: 224` before it wrote `{"shortest_edge": 224}`."""
    old = from_transformers({"size": 36, "crop_size": 32, "resample": 3}, 32, "thing")
    assert old == from_transformers(
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}, 32, "thing"
    )
    assert from_transformers({}, 32, "thing") == from_transformers({"size": 32, "crop_size": 32}, 32, "thing")
    squash = from_transformers({"size": {"height": 32, "width": 32}, "do_center_crop": False}, 32, "thing")
    assert squash.resize == "squash"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"crop_size": 48}, "48"), ({"size": 16}, "reads 32"), ({"image_mean": [0.5]}, "1 channels"),
        ({"resample": 0}, "bilinear"), ({"size": {"longest_edge": 3}}, "height"), ({"size": "big"}, "not understood"),
    ],
)  # fmt: skip
def test_recipes_that_no_clip_has(settings, says):
    with pytest.raises(InputError, match=says):
        from_transformers(settings, 32, "thing")


@pytest.mark.parametrize("settings", [{"resize_mode": "stretch"}, {"mean": [1]}, {"interpolation": "random"}])
def test_recipes_that_open_clip_does_not_evaluate_with(settings):
    with pytest.raises(InputError, match="preprocess_cfg"):
        from_open_clip(settings, 32, "thing")


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_a_strip_is_refused_before_it_fills_memory(library):
    """224 x 13 million pixels would come of 1 x 60,000; 1:200 is read still, and squashing needs no limit."""
    recipe = Recipe(library, (8, 8))
    assert recipe.preprocess(Image.new("RGB", (200, 1))).shape == (3, 8, 8)
    for size in ((201, 1), (1, 60_000)):
        with pytest.raises(InputError, match="at most 1:200"):
            recipe.preprocess(Image.new("RGB", size))
    assert Recipe(library, (8, 8), resize="squash").preprocess(Image.new("RGB", (300, 1))).shape == (3, 8, 8)
