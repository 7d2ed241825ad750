"""Is everything there and whole? Reads every image file once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sqlalchemy import select, text

from visfeedback.store import schema
from visfeedback.store.tables import feedback, images, samples
from visfeedback.types.records import Feedback

if TYPE_CHECKING:
    from visfeedback.store.core import Store


def problems(store: Store) -> Iterator[str]:
    """One line for each thing that is wrong with the database, the image files, or what feedback refers to."""
    yield from _database(store)
    yield from _images(store)
    yield from _feedback(store)


def _database(store: Store) -> Iterator[str]:
    with store.reading() as connection:
        if (found := schema.version(connection)) != schema.known()[-1]:
            yield f"schema {found}, expected {schema.known()[-1]}"
        if connection.dialect.name != "sqlite":
            return
        for (line,) in connection.execute(text("PRAGMA integrity_check")):
            if line != "ok":
                yield f"database: {line}"
        for row in connection.execute(text("PRAGMA foreign_key_check")):
            yield f"database: row {row[1]} of {row[0]} refers to nothing in {row[2]}"


def _images(store: Store) -> Iterator[str]:
    with store.reading() as connection:
        for row in connection.execute(select(images.c.sha256, images.c.suffix)):
            path = store.image_folder.path(row.sha256, row.suffix)
            if not path.is_file():
                yield f"image {path} is missing"
            elif hashlib.sha256(path.read_bytes()).hexdigest() != row.sha256:
                yield f"image {path} has changed: its bytes no longer match its name"


def _feedback(store: Store) -> Iterator[str]:
    with store.reading() as connection:
        known = set(connection.scalars(select(samples.c.id)))
        given = set(connection.scalars(select(feedback.c.id)))
        for row in connection.execute(select(feedback.c.id, feedback.c.record)):
            record = Feedback.model_validate_json(row.record)
            missing = [sample_id for sample_id in record.sample_ids if sample_id not in known]
            if missing:
                yield f"feedback {row.id} refers to sample {missing[0]}, which is not in the store"
            if record.retracts and record.retracts not in given:
                yield f"feedback {row.id} takes back {record.retracts}, which is not in the store"
