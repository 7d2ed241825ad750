"""Cells of other people's rows: images in the ways they are put into a cell, numbers, texts, whatever is left over."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.store.core import Drawn
from visfeedback.store.formats._rows import Row
from visfeedback.store.images import BadImage, inspect
from visfeedback.types.records import Sample, text_id

FOLDERS = ("", "images", "image", "train", "test", "validation", "data")  # where lists keep their images


def drawn(cell: Any, name: Any, prompt: str, row: Row, **more: Any) -> Drawn:
    """The sample behind a cell: bytes, {bytes, path}, a data URI, a path beside the file, or only a name or URL.

    ``name``: what else the row calls the image; it names samples whose image nobody has. ``more``: fields of `Sample`.
    Raises BadImage when there are bytes and they are no good image.
    """
    if not prompt:
        raise InputError(f"{row.where}: an empty prompt")
    data, called = _content(cell, row)
    called = str(name or called)
    common: dict[str, Any] = {
        "prompt_id": text_id(prompt, more.get("negative", "")),
        "prompt": prompt,
        "path": "",
    } | more
    if not data:
        return Drawn(Sample(id=text_id("absent", prompt, called), width=0, height=0, **common))
    picture = inspect(data, f"{row.where}: {called or 'image'}")
    return Drawn(Sample(id=picture.id, width=picture.width, height=picture.height, **common), data, picture)


def _content(cell: Any, row: Row) -> tuple[bytes, str]:
    """(bytes or b"", name)"""
    if isinstance(cell, bytes):
        return cell, ""
    if isinstance(cell, Mapping):
        name = str(cell.get("path") or cell.get("url") or "")
        return (cell["bytes"], name) if cell.get("bytes") else _content(name, row)
    if not isinstance(cell, str) or not cell:
        return b"", ""
    if cell.startswith("data:"):
        return _data_uri(cell, row), ""
    return ("://" not in cell and _file(cell, row.file.parent)) or b"", cell


def _data_uri(cell: str, row: Row) -> bytes:
    try:
        return base64.b64decode(cell.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise BadImage(f"{row.where}: a data URI that is not base64") from None


def _file(name: str, root: Path) -> bytes | None:
    """A file at or below ``root``; a name that leads elsewhere is not followed."""
    for folder in FOLDERS:
        path = (root / folder / name).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            return path.read_bytes()
    return None


def text(row: Row, name: str) -> str:
    """A text that is there and not empty."""
    value = row.values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{row.where}: {name}: expected a text, not {value!r:.40}")
    return value


def number(row: Row, name: str) -> float:
    """A finite number."""
    value = row.values.get(name)
    try:
        found = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{row.where}: {name}: expected a number, not {value!r:.40}")
    return found


def moment(value: Any) -> datetime | None:
    """A timestamp cell in UTC; None when there is none that can be read."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value, UTC)
        except (OverflowError, ValueError, OSError):
            return None
    if not isinstance(value, datetime):
        return None
    if (exact := getattr(value, "to_pydatetime", None)) is not None:  # pandas keeps nanoseconds
        value = exact(warn=False)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def extra(row: Row, known: Iterable[str]) -> dict[str, Any]:
    """The columns that nobody asked for, as JSON values; empty cells are left out."""
    taken = set(known)
    return {str(k): plain(v) for k, v in row.values.items() if k not in taken and v is not None and v != ""}


def plain(value: Any) -> Any:
    """A JSON value that says the same: bytes as base64, times as text, NaN as null."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
