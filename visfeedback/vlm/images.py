"""Images as they travel to an endpoint: base64 data URLs. May import: types."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Literal

from PIL.Image import Image

Format = Literal["png", "jpeg"]
JPEG_QUALITY = 95


def data_url(image: Image, form: Format = "png") -> str:
    """``data:image/png;base64,...`` of the RGB pixels: PNG without loss, or JPEG of quality 95 (about a fifth)."""
    rgb, buffer = image.convert("RGB"), BytesIO()
    rgb.info = {}  # comments and colour profiles of the file stay here
    options = {"quality": JPEG_QUALITY} if form == "jpeg" else {"compress_level": 1}
    rgb.save(buffer, form.upper(), **options)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
