"""Pairs files: rows of prompt, image_a, image_b and label, in JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from visfeedback.plugins import InputError
from visfeedback.types.files import csv_unescape

COLUMNS = ("prompt", "image_a", "image_b", "label")
LABELS = {"a": 1.0, "b": 0.0, "tie": 0.5}


class PairRow(NamedTuple):
    """One row; paths are resolved against the folder of the file."""

    prompt: str
    path_a: Path
    path_b: Path
    p_a: float  # in [0, 1], probability that image_a is better


def read_pairs(path: Path | str) -> list[PairRow]:
    """The rows of a pairs file, in order. Other columns are ignored.

    Raises InputError with one line that names the row (1 = the first row of data) when a file, a column or an image is
    missing or a label is none of a, b, tie, P(a).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; expected a pairs file (.jsonl, .csv or .parquet)")
    pairs = [_pair(row, path, number) for number, row in enumerate(_rows(path), 1)]
    if not pairs:
        raise InputError(f"{path} has no rows; expected {', '.join(COLUMNS)}")
    return pairs


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise InputError(f"{path} is {path.suffix or 'without a suffix'}; expected .jsonl, .csv or .parquet")
    return readers[path.suffix](path)


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:  # Windows programs write a mark in front
        for number, line in enumerate((line for line in file if line.strip()), 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise InputError(f"{path}, row {number}: not a JSON object")
            yield row


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            for row in csv.DictReader(file):
                yield {name: csv_unescape(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
        except csv.Error as error:
            raise InputError(f"{path} cannot be read as csv: {error}") from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


def _pair(row: dict[str, Any], path: Path, number: int) -> PairRow:
    where = f"{path}, row {number}"
    for name in COLUMNS:
        if row.get(name) is None or row[name] == "":
            raise InputError(f"{where}: no {name!r}; expected the columns {', '.join(COLUMNS)}")
    a, b = (_image(row[name], path, f"{where}: {name}") for name in ("image_a", "image_b"))
    return PairRow(str(row["prompt"]), a, b, _label(row["label"], where))


def _image(name: Any, path: Path, where: str) -> Path:
    if not isinstance(name, str):
        raise InputError(f"{where} is {type(name).__name__}; expected a path relative to {path.parent}")
    image = path.parent / name
    if not image.is_file():
        raise InputError(f"{where}: no file {image}")
    return image


def _label(label: Any, where: str) -> float:
    """P(a); a CSV holds numbers as text."""
    if isinstance(label, str) and label.strip().lower() in LABELS:
        return LABELS[label.strip().lower()]
    try:
        p_a = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError):
        p_a = math.nan
    if not 0 <= p_a <= 1:
        raise InputError(f"{where}: label {label!r}; expected a, b, tie or P(a) between 0 and 1")
    return p_a
