"""What a browser gets of an image: its pixels and nothing else. No name, no text chunk, no EXIF, no format of its own.

Every image becomes a PNG, written anew from its pixels, so that two models whose files differ in kind cannot be told
apart by the file. Lossless: what is judged is what was drawn, but for images larger than the screen asks for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from visfeedback.store.images import decode, read

FASTEST = 1  # level of PNG's compression: a person waits for it


def clean(data: bytes, name: str | Path, max_side: int) -> bytes:
    """PNG bytes of the upright picture, at most ``max_side`` pixels on its longer side. Raises BadImage."""
    image = ImageOps.exif_transpose(decode(data, name)).convert("RGB")
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    image.info.clear()
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=FASTEST)
    return buffer.getvalue()


class Pictures:
    """Clean images by the path of their file, the last ones kept; an image is made once, also when many ask."""

    def __init__(self, max_side: int, memory_bytes: int = 2**27) -> None:
        self._max_side, self._room = max_side, memory_bytes
        self._kept: OrderedDict[Path, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[Path, threading.Lock] = {}

    def get(self, path: Path) -> bytes:
        """Raises BadImage when the file is missing or damaged."""
        with self._lock:
            if (found := self._found(path)) is not None:
                return found
            making = self._making.setdefault(path, threading.Lock())
        with making:
            with self._lock:
                if (found := self._found(path)) is not None:
                    return found
            try:
                made = clean(read(path), path.name, self._max_side)
                self._keep(path, made)
            finally:
                with self._lock:
                    self._making.pop(path, None)
        return made

    def _found(self, path: Path) -> bytes | None:
        if path in self._kept:
            self._kept.move_to_end(path)
        return self._kept.get(path)

    def _keep(self, path: Path, data: bytes) -> None:
        with self._lock:
            self._kept[path] = data
            self._room -= len(data)
            while self._room < 0 and len(self._kept) > 1:
                self._room += len(self._kept.popitem(last=False)[1])
