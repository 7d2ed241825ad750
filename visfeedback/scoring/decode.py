"""Bytes of a file -> an image, or one line that says why not. Nothing is guessed by the file's name.

Decoding stops at the first frame, ignores EXIF orientation and keeps the image's own mode (palette, RGBA, CMYK, ...),
as the published code of the rewards does, which differs in how it turns each mode into RGB. One exception: 16-bit
greyscale becomes 8 bits by dividing by 257, since Pillow would clip it to white. May import: types.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from visfeedback.plugins import InputError

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA")
"""What is read: still pictures, and no format whose decoder runs programs (EPS)."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm",
            ".tga"}  # fmt: skip
"""Files of a folder that are meant as images."""
UNREAD = {".heic", ".heif", ".jxl", ".svg", ".eps", ".psd", ".ico", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr",
          ".hdr"}  # fmt: skip
"""Files that are meant as images, too, of kinds that are not read: each is a failure, none is left out in silence."""
STILLS = {"MPO"}
"""A phone's photograph with a second view of the same moment: several frames, but no animation."""


class BadImage(InputError):
    """One image cannot be scored; the others can."""


def decode(data: bytes, max_megapixels: float) -> tuple[Image.Image, str]:
    """The loaded image and a note, empty unless something about it is worth knowing. Raises BadImage, one line."""
    if not data:
        raise BadImage("the file is empty (0 bytes); make the image again")
    with _one_line(max_megapixels):
        image = Image.open(BytesIO(data), formats=_known())
    return checked(image, max_megapixels)


def checked(image: Image.Image, max_megapixels: float) -> tuple[Image.Image, str]:
    """The same for an image that is open already, of whatever origin."""
    with _one_line(max_megapixels):
        _check_size(image.size, max_megapixels)
        frames = getattr(image, "n_frames", 1) if image.format not in STILLS else 1
        image.load()
    return _eight_bits(image, f"{frames} frames; only the first was scored" if frames > 1 else "")


@contextmanager
def _one_line(max_megapixels: float) -> Iterator[None]:
    """What Pillow raises for files that are not what they should be, as BadImage."""
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"more than 178 megapixels; the limit is {max_megapixels:g} (--max-megapixels)") from None
    except UnidentifiedImageError:
        raise BadImage("not an image (none of PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, ...); save it as PNG") from None
    except Exception as error:  # decoders raise whatever they like (AVIF: RuntimeError), and one image is no run
        said = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"damaged: {said}; make the image again") from None


@cache
def _known() -> list[str]:
    """Those of FORMATS that this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_size(size: tuple[int, int], max_megapixels: float) -> None:
    megapixels = size[0] * size[1] / 1e6
    if megapixels > max_megapixels:
        raise BadImage(
            f"{size[0]}x{size[1]} is {megapixels:.4g} megapixels; the limit is {max_megapixels:g} (--max-megapixels)"
        )


def _eight_bits(image: Image.Image, note: str) -> tuple[Image.Image, str]:
    if image.mode == "F":
        raise BadImage("pixels are floating-point numbers of unknown range; save it with 8 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image, note
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("pixels are 32-bit numbers of unknown range; save it with 8 bits")
    said = "16-bit greyscale; scored as 8 bits, value / 257"
    return Image.fromarray(np.round(values / 257).astype(np.uint8)), f"{note}; {said}" if note else said
