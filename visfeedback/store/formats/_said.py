"""What we say beside the columns of another tool's layout, in columns of our own that its readers pass over."""

from __future__ import annotations

import json
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.store.formats._cells import moment
from visfeedback.store.formats._people import People
from visfeedback.store.formats._rows import Row
from visfeedback.types.records import Feedback, Sample

COLUMNS = ("feedback_id", "judge", "criterion", "sides", "seconds", "note", "gold", "negative", "extra", "created_at")
FIELDS = ("id", "judge", "criterion", "sides", "seconds", "note", "gold", "extra", "created_at", "prompt_id")
"""The fields of `Feedback` that these columns carry; `negative` is needed for the prompt's id."""


def said(record: Feedback, people: People, sample: Sample) -> dict[str, Any]:
    """The columns; ``sample`` is any sample of the record."""
    return {
        "feedback_id": record.id,
        "judge": people(record.judge),
        "criterion": record.criterion,
        "sides": ",".join(str(side) for side in record.sides),
        "seconds": record.seconds,
        "note": record.note,
        "gold": record.gold,
        "negative": sample.negative,
        "extra": json.dumps(record.extra, ensure_ascii=False) if record.extra else "",
        "created_at": record.created_at.isoformat(),
    }


def arrow_fields() -> list[tuple[str, Any]]:
    """The same columns for a Parquet schema."""
    import pyarrow as pa

    kinds = {"seconds": pa.float64(), "gold": pa.bool_()}
    return [(name, kinds.get(name, pa.string())) for name in COLUMNS]


def heard(row: Row, judge: str, unknown: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Fields of `Feedback` from these columns where they are there; ``unknown`` are the columns nobody knows.

    ``judge`` and ``more`` hold where the row says nothing itself.
    """
    cells = row.values
    own = {name: cells[name] for name in ("judge", "criterion", "note") if isinstance(cells.get(name), str)}
    found = {"judge": judge} | more | {name: value for name, value in own.items() if value}
    if isinstance(cells.get("sides"), str) and cells["sides"]:
        found["sides"] = _sides(cells["sides"], row)
    if (seconds := cells.get("seconds")) not in (None, ""):
        found["seconds"] = _seconds(seconds, row)
    if (at := moment(cells.get("created_at"))) is not None:
        found["created_at"] = at
    found["gold"] = str(cells.get("gold", "")).lower() in ("true", "1")
    found["extra"] = _extra(cells.get("extra"), row) | unknown
    return found


def negative(row: Row) -> str:
    """The negative prompt, empty where there is none."""
    return str(row.values.get("negative") or "")


def _sides(text: str, row: Row) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{row.where}: sides must be like 1,0, not {text!r}") from None


def _seconds(value: Any, row: Row) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{row.where}: seconds must be a number, not {value!r:.40}") from None


def _extra(text: Any, row: Row) -> dict[str, Any]:
    if not isinstance(text, str) or not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return {"extra": text}  # somebody else's column of that name
    return found
