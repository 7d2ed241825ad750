"""How a picture becomes what a CLIP tower reads: resize, crop, scale, normalise.

Two libraries publish CLIP models and agree on RGB pictures up to the rounding of the crop, but not on others:

- transformers (its Pillow processor) turns the picture into RGB first, transparency over white, and rounds the crop's
  offset down. Its releases before 5 dropped the alpha channel instead;
- open_clip, like OpenAI's own code, resizes in the picture's own mode (so a palette picture by nearest neighbour, and
  colours under transparency weighted by it), crops at the rounded offset, and turns the result into RGB, which drops
  alpha and cuts 16-bit values at 255.

``Recipe`` follows the library whose files it was read from. ``from_pixels`` is the same recipe on float tensors, with
a gradient; it differs in that Pillow rounds to 8 bits after each of its two passes. May import: nothing of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from visfeedback.plugins import InputError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MAX_RATIO = 200
"""Longest to shortest side of a picture whose shortest side is resized: 1 x 60,000 pixels would become gigabytes."""


@dataclass(frozen=True)
class Recipe:
    """One model's preprocessing, as data. ``size`` is (height, width) of the result, in pixels."""

    library: Literal["transformers", "open_clip"]
    size: tuple[int, int]
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    edge: int | None = None  # length of the shortest edge before the crop; None: as large as the crop needs
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    fill: int = 0  # colour of the bars that `longest` adds

    @property
    def id(self) -> str:
        """All of the above in one line: part of cache keys."""
        mean, std = (",".join(f"{value:.5g}" for value in values) for values in (self.mean, self.std))
        edge = f"-edge{self.edge}" if self.edge else ""
        bars = f"-fill{self.fill}" if self.resize == "longest" else ""
        height, width = self.size
        return f"{self.library}-{self.resize}{edge}{bars}-{height}x{width}-{self.interpolation}-mean{mean}-std{std}"

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture of any mode and size -> (3, H, W), normalised, as the library does it.

        Raises InputError for sides of more than 1:200 where the shortest one is resized.
        """
        self._check_ratio(image.width, image.height)
        return self._transform(image) if self.library == "open_clip" else self._as_transformers(image)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, h, w), normalised, with a gradient."""
        height, width = self._resized(pixels.shape[-2], pixels.shape[-1])
        if pixels.shape[-2:] != (height, width):
            pixels = F.interpolate(
                pixels, (height, width), mode=self.interpolation, antialias=True, align_corners=False
            ).clamp(0, 1)
        pixels = crop_or_pad(pixels, self.size, self.fill / 255, down=self.library == "transformers")
        return normalise(pixels, self.mean, self.std)

    def _check_ratio(self, width: int, height: int) -> None:
        if self.resize == "shortest" and max(width, height) > MAX_RATIO * min(width, height):
            raise InputError(
                f"sides of {width} x {height}; this reward reads images whose sides are at most 1:{MAX_RATIO}"
            )

    @cached_property
    def _transform(self) -> Any:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        config = PreprocessCfg(
            size=self.size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            resize_mode=self.resize,
            fill_color=self.fill,
        )
        return image_transform_v2(config, is_train=False)

    def _as_transformers(self, image: Image.Image) -> Tensor:
        image = over_white(image)
        height, width = self._resized(image.height, image.width)
        image = image.resize((width, height), FILTERS[self.interpolation])
        top, left = ((big - small) // 2 for big, small in zip((height, width), self.size, strict=True))
        image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        pixels = (np.array(image).astype(np.float64) / 255).astype(np.float32)
        return normalise(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), self.mean, self.std)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Size after resizing and before the crop or the bars."""
        if self.resize == "squash":
            return self.size
        if self.resize == "shortest" and (self.edge or self.size[0] == self.size[1]):
            edge, short, long = self.edge or self.size[0], min(height, width), max(height, width)
            resized = int(edge * long / short)
            return (edge, resized) if height <= width else (resized, edge)
        ratios = height / self.size[0], width / self.size[1]
        ratio = max(ratios) if self.resize == "longest" else min(ratios)
        return round(height / ratio), round(width / ratio)


def over_white(image: Image.Image) -> Image.Image:
    """RGB, with what is transparent (in RGBA, LA, or a palette) laid over white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    background = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(..., 3, H, W) in [0, 1] -> (pixels - mean) / std per channel."""
    columns = [torch.tensor(v, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for v in (mean, std)]
    return (pixels - columns[0]) / columns[1]


def crop_or_pad(pixels: Tensor, size: tuple[int, int], fill: float = 0.0, down: bool = False) -> Tensor:
    """The middle (..., h, w) of (..., H, W); where that is larger, bars of ``fill``, the odd line at the far end.

    ``down`` rounds the crop's offset down; otherwise half to even, as torchvision does.
    """
    height, width = pixels.shape[-2:]
    high, wide = max(size[0] - height, 0), max(size[1] - width, 0)
    if high or wide:
        pixels = F.pad(pixels, (wide // 2, wide - wide // 2, high // 2, high - high // 2), value=fill)
    spare = [big - small for big, small in zip(pixels.shape[-2:], size, strict=True)]
    top, left = (s // 2 if down else round(s / 2) for s in spare)
    return pixels[..., top : top + size[0], left : left + size[1]]


def from_open_clip(settings: dict[str, Any], size: int | tuple[int, int], what: str) -> Recipe:
    """The ``preprocess_cfg`` of an ``open_clip_config.json``; ``size`` is the image tower's own."""
    try:
        return Recipe(
            "open_clip",
            (size, size) if isinstance(size, int) else (size[0], size[1]),
            resize=_choice(settings.get("resize_mode") or "shortest", ("shortest", "longest", "squash")),
            interpolation=_choice(settings.get("interpolation") or "bicubic", tuple(FILTERS)),
            mean=_channels(settings.get("mean") or OPENAI_MEAN),
            std=_channels(settings.get("std") or OPENAI_STD),
            fill=int(settings.get("fill_color") or 0),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{what}: its preprocess_cfg is not understood: {error}") from None


def from_transformers(settings: dict[str, Any], size: int, what: str) -> Recipe:
    """A ``preprocessor_config.json``; what it does not say is CLIP's own default. ``size`` is the image tower's own.

    Raises InputError for a recipe that no CLIP processor has, or whose result the tower cannot read.
    """
    try:
        crop = _sides(settings.get("crop_size") or size)
        asked = settings.get("size") or size
        edge = asked if isinstance(asked, int) else asked.get("shortest_edge")
        squash = edge is None
        result = crop if settings.get("do_center_crop", True) and not squash else (size, size)
        if squash and _sides(asked) != result:
            raise ValueError(f"size {asked} with a crop")
        recipe = Recipe(
            "transformers",
            result,
            resize="squash" if squash else "shortest",
            edge=edge,
            interpolation=_choice({2: "bilinear", 3: "bicubic"}.get(settings.get("resample", 3)), tuple(FILTERS)),
            mean=_channels(settings.get("image_mean") or OPENAI_MEAN),
            std=_channels(settings.get("image_std") or OPENAI_STD),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{what}: its preprocessor_config.json is not understood: {error}") from None
    if recipe.size != (size, size) or (edge is not None and edge < size):
        raise InputError(
            f"{what}: its preprocessor_config.json makes {recipe.size} pixels, its image tower reads {size}"
        )
    return recipe


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))


def _channels(values: Any) -> tuple[float, ...]:
    channels = tuple(float(value) for value in values)
    if len(channels) != 3:
        raise ValueError(f"{len(channels)} channels, expected 3")
    return channels


def _choice(value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ValueError(f"{value!r}, expected one of {', '.join(known)}")
    return value
