"""Pictures of rounds: a sheet of one round's images with frames for what was liked, and a strip of several prompts.

May import: types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 6  # px between images
FRAME = 5  # px
LIKED, DISLIKED, PAPER, INK = "#2e8b57", "#c0392b", "#ffffff", "#333333"
CELL = 140  # px: the longest side of one image; small ones are enlarged without smoothing
HEADING = 22  # px
TILE = 96  # px: the longest side of a sheet in a strip


def sheet(images: Sequence[Image.Image], marks: Sequence[int]) -> Image.Image:
    """Images in rows, nearly square; mark 1 = green frame, -1 = red frame and a stroke, 0 = none."""
    columns = math.ceil(math.sqrt(len(images)))
    cells = [_marked(_sized(image, CELL), mark) for image, mark in zip(images, marks, strict=True)]
    width, height = cells[0].width + GAP, cells[0].height + GAP
    rows = math.ceil(len(cells) / columns)
    page = Image.new("RGB", (columns * width - GAP, rows * height - GAP), PAPER)
    for place, cell in enumerate(cells):
        page.paste(cell, (place % columns * width, place // columns * height))
    return page


def strip(rows: Sequence[tuple[str, Sequence[Image.Image]]], headings: Sequence[str]) -> Image.Image:
    """One line for each prompt, its pictures side by side under ``headings``; small enough for a README."""
    lines = [(prompt, [_sized(picture, TILE * 2) for picture in pictures]) for prompt, pictures in rows]
    width, height = TILE * 2 + 2 * GAP, TILE * 2 + GAP + HEADING
    page = Image.new("RGB", (len(headings) * width - 2 * GAP, HEADING + len(lines) * height), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for column, heading in enumerate(headings):
        pen.text((column * width, 2), heading, INK, font)
    for row, (prompt, pictures) in enumerate(lines):
        top = HEADING + row * height
        pen.text((0, top + 2), prompt, INK, font)
        for column, picture in enumerate(pictures):
            page.paste(picture, (column * width, top + HEADING))
    return page


def _sized(image: Image.Image, longest: int) -> Image.Image:
    """To ``longest`` px: larger pictures shrink, smaller ones grow by whole numbers."""
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        return image
    times = longest // max(image.size)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _marked(image: Image.Image, mark: int) -> Image.Image:
    if mark:
        image = image.copy()
        pen, corner = ImageDraw.Draw(image), (image.width - 1, image.height - 1)
        pen.rectangle(((0, 0), corner), outline=LIKED if mark > 0 else DISLIKED, width=FRAME)
        if mark < 0:
            pen.line(((0, image.height - 1), (image.width - 1, 0)), DISLIKED, FRAME // 2)
    return image
