"""Which bytes are an image, which are not and why, in one line."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from visfeedback.scoring.decode import BadImage, decode

RAMP = Image.fromarray(np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3))

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def emptied(data: bytes) -> bytes:
    """The pixels of an AVIF file as zeros."""
    head = data.index(b"mdat") + 4
    return data[:head] + bytes(len(data) - head)


def saved(image: Image.Image, kind: str, **more) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A few bytes of PNG that claim to be that large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA"])
def test_still_pictures_whatever_they_are_called(kind: str) -> None:
    """Content decides: a renamed file is what it is."""
    image, note = decode(saved(RAMP, kind), 64)
    assert image.size == (20, 12)
    assert note == ""


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "L", "CMYK", "1"])
def test_the_mode_is_kept_for_the_published_preprocessing(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image, note = decode(saved(RAMP.convert(mode), kind), 64)
    assert (image.mode, note) == (mode, "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty (0 bytes)"),
        (b"<html>not found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (lambda: half(saved(NOISE, "PNG")), "damaged"),
        (lambda: half(saved(NOISE, "JPEG")), "damaged"),
        (lambda: half(saved(NOISE, "WEBP")), "damaged"),
        (lambda: half(saved(NOISE, "GIF")), "damaged"),
        (lambda: emptied(saved(NOISE, "AVIF")), "damaged"),  # its decoder raises a RuntimeError
        (lambda: huge_png(10_000, 10_000), "10000x10000 is 100 megapixels; the limit is 64 (--max-megapixels)"),
        (lambda: huge_png(60_000, 60_000), "more than 178 megapixels"),
        (lambda: saved(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
        (lambda: saved(Image.new("I", (4, 4), 70_000), "TIFF"), "32-bit"),
    ],
)
def test_what_cannot_be_scored_says_why_in_one_line(data: bytes | Callable[[], bytes], said: str) -> None:
    with pytest.raises(BadImage) as error:
        decode(data if isinstance(data, bytes) else data(), 64)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_limit_can_be_raised() -> None:
    data = saved(Image.new("L", (2000, 1000)), "PNG")
    assert decode(data, 2.0)[0].size == (2000, 1000)
    with pytest.raises(BadImage, match="2 megapixels; the limit is 1"):
        decode(data, 1.0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_with_a_note(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    image, note = decode(data, 64)
    red, green, blue = image.convert("RGB").getpixel((4, 4))
    assert red > 200
    assert max(green, blue) < 40
    assert note == "3 frames; only the first was scored"


def test_16_bits_become_8_by_value_over_257() -> None:
    """Pillow would clip 256 and above to white; 257 k is k."""
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for data in (saved(Image.fromarray(values), "PNG"), saved(Image.fromarray(values), "TIFF")):
        image, note = decode(data, 64)
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), np.arange(256).reshape(16, 16))
        assert "16-bit" in note
