"""Images as files named by the sha256 of their bytes: `prefs.images/ab/abcdef....png`. Bytes are kept as they came."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from visfeedback.plugins import InputError
from visfeedback.types.files import write_atomic
from visfeedback.types.records import image_id

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
MAX_PIXELS = 64_000_000  # 8000 x 8000; a few kilobytes of PNG can claim to be far more than memory holds


class BadImage(InputError):
    """One image cannot be used; the others may well be."""


@dataclass(frozen=True)
class Picture:
    """What a checked image file turned out to be."""

    sha256: str  # of the bytes
    id: str  # `image_id` of the pixels
    suffix: str
    size_bytes: int
    width: int  # pixels
    height: int


def inspect(data: bytes, name: str | Path) -> Picture:
    """Decode the whole image. Raises BadImage naming ``name`` when it is damaged, too large or of another format."""
    image = decode(data, name)
    rgb = image.convert("RGB")
    return Picture(
        sha256=hashlib.sha256(data).hexdigest(),
        id=image_id(rgb.width, rgb.height, rgb.tobytes()),
        suffix=SUFFIXES[image.format or ""],
        size_bytes=len(data),
        width=rgb.width,
        height=rgb.height,
    )


def decode(data: bytes, name: str | Path) -> Image:
    """A loaded PIL image; BadImage as in `inspect`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit below is lower
            image = Image.open(BytesIO(data))
        _check_limits(image.size, image.format, name)
        image.load()
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"{name} claims more than {MAX_PIXELS / 1e6:.0f} million pixels; make it smaller") from None
    except UnidentifiedImageError:
        raise BadImage(f"{name} is not an image (expected PNG, JPEG or WebP)") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise BadImage(f"{name} is damaged ({error}); make the image again") from None
    return image


def _check_limits(size: tuple[int, int], kind: str | None, name: str | Path) -> None:
    width, height = size
    if kind not in SUFFIXES:
        raise BadImage(f"{name} is {kind}; images are kept as PNG, JPEG or WebP, so convert it first")
    if width * height > MAX_PIXELS:
        limit = f"{MAX_PIXELS / 1e6:.0f} million pixels"
        raise BadImage(f"{name} is {width}x{height}; the limit is {limit}, so make it smaller")


def read(path: Path) -> bytes:
    """The bytes of an image file, or one line saying why not."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadImage(f"no image {path}") from None
    except IsADirectoryError:
        raise BadImage(f"{path} is a folder; expected an image file") from None


@dataclass(frozen=True)
class ImageFolder:
    """The folder of a store's images; two levels, so that no folder grows too long."""

    root: Path

    def path(self, sha256: str, suffix: str) -> Path:
        return self.root / sha256[:2] / f"{sha256}{suffix}"

    def put(self, data: bytes, sha256: str, suffix: str) -> Path:
        """Keep the bytes; a whole file that is already there is left alone, a torn one is replaced."""
        path = self.path(sha256, suffix)
        if not path.is_file() or path.stat().st_size != len(data):
            write_atomic(path, data)
        return path
