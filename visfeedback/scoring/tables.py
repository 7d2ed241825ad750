"""The table of scores as parquet, csv or jsonl: one row for each image x prompt x reward, written and read in pieces.

To add a format: a class with ``write`` and ``close``, a function that yields tables, and a line in ``FORMATS``.
May import: types.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
from pyarrow import parquet

from visfeedback.plugins import InputError
from visfeedback.types.files import csv_escape, csv_unescape, sync_folder

TEXTS = ("image", "image_sha256", "prompt", "reward")
FREE = ("image", "prompt", "reward", "model")
"""Columns with words that may be anybody's."""
COLUMNS = (*TEXTS, "score", "model", "revision", "checkpoint_sha256", "preprocessing", "dtype")
SCHEMA = pa.schema([(name, pa.float64() if name == "score" else pa.string()) for name in COLUMNS])
ROWS = 8192
"""Rows read at once."""


class Writer(Protocol):
    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._writer = parquet.ParquetWriter(path, SCHEMA)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


class _Csv:
    """A missing prompt is an empty cell; scores have all their digits; no text is a spreadsheet's formula."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(COLUMNS)

    def write(self, table: pa.Table) -> None:
        columns = ([_cell(name, value) for value in table[name].to_pylist()] for name in COLUMNS)
        self._writer.writerows(zip(*columns, strict=True))

    def close(self) -> None:
        self._file.close()


def _cell(name: str, value: Any) -> Any:
    return csv_escape(value) if name in FREE and value is not None else value


class _Jsonl:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, table: pa.Table) -> None:
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())

    def close(self) -> None:
        self._file.close()


def _read_parquet(path: Path) -> Iterator[pa.Table]:
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS):
            yield pa.Table.from_batches([batch])


def _read_csv(path: Path) -> Iterator[pa.Table]:
    csv.field_size_limit(2**31 - 1)  # prompts may be longer than 128 KiB
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError("other columns")
        yield from _tables(_from_csv(row) for row in reader)


def _from_csv(row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: csv_unescape(row[name]) for name in FREE}
    return {**row, **texts, "score": float(row["score"]), "prompt": texts["prompt"] or None}


def _read_jsonl(path: Path) -> Iterator[pa.Table]:
    with path.open(encoding="utf-8") as file:
        yield from _tables(_checked(json.loads(line)) for line in file)


def _checked(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict) or set(row) != set(COLUMNS):
        raise ValueError("other columns")
    return row


def _tables(rows: Iterator[dict[str, Any]]) -> Iterator[pa.Table]:
    part: list[dict[str, Any]] = []
    for row in rows:
        part.append(row)
        if len(part) == ROWS:
            yield pa.Table.from_pylist(part, SCHEMA)
            part = []
    if part:
        yield pa.Table.from_pylist(part, SCHEMA)


class Format(NamedTuple):
    writer: Any
    read: Any


FORMATS = {".parquet": Format(_Parquet, _read_parquet), ".csv": Format(_Csv, _read_csv),
           ".jsonl": Format(_Jsonl, _read_jsonl)}  # fmt: skip


def check(path: Path) -> None:
    """Raises InputError for a name that is no table's."""
    if path.suffix not in FORMATS:
        raise InputError(f"--out {path} ends in {path.suffix or 'nothing'}; expected .parquet, .csv or .jsonl")
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; expected a file, for example {path / 'scores.parquet'}")


def sync_file(path: Path) -> None:
    """What was written is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path, temporary: Path) -> Iterator[Writer]:
    """Rows go to ``temporary``, on the same file system, which becomes ``path``, whole and synced, at the end."""
    writer = FORMATS[path.suffix].writer(temporary)
    try:
        yield writer
    finally:
        writer.close()
    sync_file(temporary)
    os.replace(temporary, path)
    sync_folder(path.parent)


def read(path: Path) -> Iterator[pa.Table]:
    """The rows in pieces. Raises InputError when the file is no table of scores."""
    try:
        for table in FORMATS[path.suffix].read(path):
            if table.schema.names != list(COLUMNS):
                raise ValueError("other columns")
            yield table
    except (pa.ArrowException, csv.Error, ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            f"{path} is there and is no table of scores ({str(error).splitlines()[0]}); give another --out"
        ) from None
