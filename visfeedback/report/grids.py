"""Pictures for pages and files: data URIs, contact sheets, before/after cards.

May import: types.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

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


def contact_sheet(
    images: Sequence[Image.Image], columns: int = 0, gap: int = 2, scale: int = 1, background: str = "white"
) -> Image.Image:
    """Images of one size in rows of ``columns`` (0 = about square), ``gap`` px apart, enlarged ``scale`` times.

    Raises ValueError when there is no image or the sizes differ.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    if len({image.size for image in images}) > 1:
        raise ValueError("a contact sheet needs images of one size")
    columns = columns or math.ceil(math.sqrt(len(images)))
    columns, rows = min(columns, len(images)), math.ceil(len(images) / columns)
    width, height = (side * scale for side in images[0].size)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB", size, background)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (column * (width + gap), row * (height + gap)))
    return sheet
