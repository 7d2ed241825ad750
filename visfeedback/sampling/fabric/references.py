"""Liked and disliked images from files, PIL images or, when allowed, addresses: any mode, any size.

May import: types.
"""

from __future__ import annotations

import io
import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from visfeedback.plugins import InputError
from visfeedback.types.records import image_id

LARGEST_DOWNLOAD = 32 << 20  # bytes
PATIENCE = 20  # seconds


@dataclass(frozen=True, eq=False)
class Reference:
    """An image somebody liked or disliked, and how much."""

    id: str
    """sha256 of size and RGB pixels"""
    image: Image.Image
    """RGB"""
    weight: float = 1.0
    source: str = ""
    """file or address; empty for an image from memory"""


def read_references(sources: Any, allow_urls: bool = False) -> list[Reference]:
    """One or several of: path, PIL image, address, Reference, (any of these, weight). Raises InputError."""
    if isinstance(sources, str | Path | Image.Image | Reference) or _is_weighted(sources):
        sources = [sources]
    if not isinstance(sources, Iterable):
        raise InputError(
            f"references are {type(sources).__name__}; expected paths, PIL images or (image, weight) pairs"
        )
    return [read_reference(source, allow_urls) for source in sources]


def read_reference(source: Any, allow_urls: bool = False) -> Reference:
    """One reference; of an equal image and weight comes an equal one. Raises InputError in one line."""
    weight = 1.0
    if _is_weighted(source):
        source, weight = source
    if not math.isfinite(weight) or weight < 0:
        raise InputError(f"weight {weight} of a reference; expected 0 or more")
    if isinstance(source, Reference):
        return Reference(source.id, source.image, weight * source.weight, source.source)
    name = "" if isinstance(source, Image.Image) else str(source)
    image = rgb(_open(source, allow_urls))
    return Reference(image_id(image.width, image.height, image.tobytes()), image, float(weight), name)


def rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: turned as its EXIF says, transparency over white, 16 bits reduced to 8, the first frame."""
    if not image.width or not image.height:
        raise InputError(f"a reference has {image.width} x {image.height} px; expected at least 1 x 1")
    try:
        return _as_rgb(ImageOps.exif_transpose(image))
    except ValueError as error:
        raise InputError(f"a reference of mode {image.mode} cannot be read as RGB: {error}; convert it first") from None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image, dtype=np.float64)
        eight = image.mode == "I" and values.max() <= 255  # what PIL's own conversions to I make of 8 bits
        image = Image.fromarray(np.clip(np.round(values / (1 if eight else 257)), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        highest = np.max(values, initial=0, where=np.isfinite(values))
        scale = 255 if highest <= 2 else 1  # 0 to 1 as arrays have it, resizing overshoots; or 0 to 255 as PIL has it
        values = np.nan_to_num(values, posinf=255)
        image = Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scaled to cover ``width`` x ``height`` and cut in the middle."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def _is_weighted(source: Any) -> bool:
    return (
        isinstance(source, tuple | list)
        and len(source) == 2
        and isinstance(source[1], numbers.Real)
        and not isinstance(source[1], bool)
    )


def _open(source: Any, allow_urls: bool) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, str | Path):
        raise InputError(f"a reference is {type(source).__name__}; expected a path, a PIL image or (image, weight)")
    if not str(source).strip() or str(source) == ".":
        raise InputError("a reference has no name; expected an image file")
    try:
        if str(source).startswith(("http://", "https://")):
            if not allow_urls:
                raise InputError(
                    f"reference {source} is an address; download it first (in Python allow_urls=True reads it)"
                )
            file: Any = io.BytesIO(_download(str(source)))
        else:
            file = Path(source).expanduser()
        with Image.open(file) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise InputError(f"no reference image {source}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"reference {source} is no image that can be read: {str(error).splitlines()[0]}") from None


def _download(address: str) -> bytes:
    from urllib.request import Request, urlopen

    with urlopen(Request(address, headers={"User-Agent": "visfeedback"}), timeout=PATIENCE) as answer:
        content = answer.read(LARGEST_DOWNLOAD + 1)
    if len(content) > LARGEST_DOWNLOAD:
        raise InputError(f"reference {address} is larger than {LARGEST_DOWNLOAD >> 20} MiB")
    return content
