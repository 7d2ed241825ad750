"""Pictures for pages: data URIs, before/after cards.

May import: types.
"""

from __future__ import annotations

import base64
import io

from PIL import Image

from visfeedback.report.blocks import Card, Picture, Tone

PIXEL_ART = 128
"""Images no larger than this (px) are enlarged without smoothing and stored losslessly."""
LARGEST = 384
"""Longest side (px) of a photograph-sized image inside a page: twice the size it is shown at."""


def data_uri(image: Image.Image) -> str:
    """PNG for small images, pixel for pixel; larger ones shrink to 384 px and become JPEG."""
    image = image.convert("RGB")
    buffer = io.BytesIO()
    if max(image.size) <= PIXEL_ART:
        image.save(buffer, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(image: Image.Image, alt: str, label: str = "", mark: str = "", tone: Tone = "plain") -> Picture:
    """One image for a card."""
    return Picture(data_uri(image), alt, label, mark, tone, pixelated=max(image.size) <= PIXEL_ART)


def before_after(
    prompt: str, base: Image.Image, tuned: Image.Image, marks: tuple[str, str] = ("", ""), tag: str = ""
) -> Card:
    """A card with the base image left and the tuned one right.

    ``marks`` are verdicts in words; those that begin with "right" are good, other words bad, empty ones unjudged.
    """
    pictures = tuple(
        picture(image, f"{label} model, {prompt!r}{', ' + mark if mark else ''}", label, mark, _tone(mark))
        for label, image, mark in (("base", base, marks[0]), ("tuned", tuned, marks[1]))
    )
    return Card(prompt, pictures, tag, {"mended": "good", "broken": "bad"}.get(tag, "plain"))  # type: ignore[arg-type]


def _tone(mark: str) -> Tone:
    if not mark:
        return "plain"
    return "good" if mark.startswith("right") else "bad"
