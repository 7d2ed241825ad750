"""Records to rows of the tables and back, and inserts that leave what is already there alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, case
from sqlalchemy.dialects import postgresql, sqlite

from visfeedback.plugins import InputError
from visfeedback.store.images import Picture
from visfeedback.store.tables import prompts
from visfeedback.types.records import Feedback, Prompt, Sample

Item = TypeVar("Item")
Row = dict[str, Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of at most ``size``, so that a stream of millions stays a stream."""
    source = iter(items)
    while part := list(islice(source, size)):
        yield part


def prompt_row(prompt: Prompt) -> Row:
    return prompt.model_dump()


def prompt_of(sample: Sample) -> Prompt:
    """The prompt as far as a sample knows it."""
    if not sample.prompt:
        raise InputError(f"sample {sample.id[:12]} ({sample.path}) has an empty prompt; give the text it was made from")
    return Prompt(id=sample.prompt_id, text=sample.prompt, negative=sample.negative, category=sample.category)


def sample_record(sample: Sample) -> str:
    """The JSON kept for a sample: without its path, because the store keeps the file elsewhere."""
    return sample.model_copy(update={"path": ""}).model_dump_json()


def sample_digest(sample: Sample) -> str:
    return hashlib.sha256(sample_record(sample).encode()).hexdigest()


def sample_row(sample: Sample, image: str | None) -> Row:
    """``image`` is the sha256 of the bytes of the image file; None when nobody has the file."""
    return {
        "digest": sample_digest(sample),
        "id": sample.id,
        "prompt_id": sample.prompt_id,
        "image": image,
        "record": sample_record(sample),
    }


def image_row(picture: Picture) -> Row:
    return {
        "sha256": picture.sha256,
        "suffix": picture.suffix,
        "size_bytes": picture.size_bytes,
        "width": picture.width,
        "height": picture.height,
    }


def feedback_row(record: Feedback) -> Row:
    return {
        "id": record.id,
        "kind": record.kind,
        "judge": record.judge,
        "criterion": record.criterion,
        "prompt_id": record.prompt_id,
        "choice": record.choice,
        "gold": record.gold,
        "seconds": record.seconds,
        "retracts": record.retracts,
        "created_at": record.created_at.astimezone(UTC),
        "record": record.model_dump_json(),
    }


def same(one: Feedback, other: Feedback) -> bool:
    """Equal but for the clock: a repeated request stamps the same answer a second time."""
    return one.model_copy(update={"created_at": _EPOCH}) == other.model_copy(update={"created_at": _EPOCH})


def insert_new(connection: Connection, table: Table, rows: list[Row]) -> None:
    """Insert; rows whose key is taken are left out."""
    if rows:
        connection.execute(_insert(connection, table).on_conflict_do_nothing(), rows)


def fill_in_prompts(connection: Connection, records: Iterable[Prompt]) -> None:
    """Insert prompts; for known ones fill in what was still empty."""
    rows = {record.id: prompt_row(record) for record in records}
    if not rows:
        return
    statement = _insert(connection, prompts)
    fill = {
        name: case((prompts.c[name] == "", statement.excluded[name]), else_=prompts.c[name])
        for name in ("source", "category", "split")
    }
    connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=fill), list(rows.values()))


def _insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)
