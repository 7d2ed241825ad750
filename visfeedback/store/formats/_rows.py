"""Rows of other people's files as dicts, one by one: Parquet, JSON (a list), JSON lines, CSV; a file or a folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from visfeedback.plugins import InputError
from visfeedback.types.files import csv_unescape

PIECE = 1 << 16  # characters of JSON read at a time
LARGEST = 64 << 20  # characters of one element of a JSON list
ROWS_WITH_IMAGES = 32
ROWS = 2048


class Row(NamedTuple):
    """One row and where it stands."""

    values: dict[str, Any]
    file: Path
    number: int  # 1 = first row

    @property
    def where(self) -> str:
        return f"{self.file}, row {self.number}"


def rows(path: Path, needed: Collection[str] = (), *, only: bool = False) -> Iterator[Row]:
    """All rows of a file, or of the files of a folder in the order of their names (Parquet before JSON before CSV).

    ``only``: of Parquet files no columns but ``needed`` are read, which is quicker.
    Raises InputError with one line: no file, not readable, a row that is no object, a column of ``needed`` missing.
    """
    for file in _files(path):
        for number, values in enumerate(_read(file, tuple(needed) if only else ()), 1):
            if not isinstance(values, dict):
                raise InputError(
                    f"{file}, row {number}: expected an object with {', '.join(needed)}, not {values!r:.40}"
                )
            missing = [name for name in needed if name not in values]
            if missing:
                raise InputError(f"{file}, row {number}: no {missing[0]!r}; expected {', '.join(needed)}")
            yield Row(values, file, number)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"no file {path}")
    for suffix in READERS:
        if found := sorted(path.rglob(f"*{suffix}")):
            return found
    raise InputError(f"{path} has no file of {', '.join(READERS)}")


def _read(path: Path, columns: tuple[str, ...]) -> Iterator[Any]:
    if path.suffix == ".parquet":
        return _parquet(path, columns)
    if path.suffix not in READERS:
        raise InputError(f"{path} is {path.suffix or 'without a suffix'}; expected {', '.join(READERS)}")
    return READERS[path.suffix](path)


def _parquet(path: Path, columns: tuple[str, ...] = ()) -> Iterator[Any]:
    """Rows with these columns, as far as they are there; with all when none is named."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            read = [field for field in file.schema_arrow if not columns or field.name in columns]
            heavy = any("binary" in str(field.type) for field in read)
            size, names = ROWS_WITH_IMAGES if heavy else ROWS, [field.name for field in read]
            for batch in file.iter_batches(batch_size=size, columns=names):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


def _jsonl(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate((line for line in file if line.strip()), 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise InputError(f"{path}, row {number}: not a JSON object") from None


def _csv(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            for row in csv.DictReader(file):
                yield {key: csv_unescape(value) for key, value in row.items() if isinstance(value, str)}
        except csv.Error as error:
            raise InputError(f"{path} cannot be read as CSV: {error}") from None


def json_list(path: Path) -> Iterator[Any]:
    """The elements of a JSON list of any length, one by one. InputError where it is cut off or is something else."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        text = file.read(PIECE).lstrip()
        if not text.startswith("["):
            raise InputError(f"{path} does not begin with [; expected a JSON list")
        text, count = text[1:], 0
        while True:
            text = text.lstrip(" \t\r\n,")
            if text.startswith("]"):
                return
            value, text = _element(text, file, decoder, f"{path}, row {count + 1}")
            count += 1
            yield value


def _element(text: str, file: Any, decoder: json.JSONDecoder, where: str) -> tuple[Any, str]:
    """The next element and the text after it; reads on until the element is followed by a comma or the end."""
    piece = PIECE
    while True:
        try:
            value, end = decoder.raw_decode(text)
            if text[end:].lstrip()[:1] in (",", "]") and text[end:].strip():
                return value, text[end:]
            wrong = bool(text[end:].strip())
        except ValueError:
            wrong = len(text) > LARGEST
        more = "" if wrong else file.read(piece)
        if not more:
            raise InputError(f"{where}: the JSON list is cut off or damaged")
        text = (text + more).lstrip()
        piece *= 2  # an element of many pieces is not parsed again for each


READERS = {".parquet": _parquet, ".jsonl": _jsonl, ".json": json_list, ".csv": _csv}
