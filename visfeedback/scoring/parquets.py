"""Parquet files with images inside, as Hugging Face datasets write them, read forwards and a few rows at a time.

Columns: `image`, either bytes or a struct with `bytes` and `path`; `prompt` (may be absent). Names come from the
struct's `path`, else from a column `file_name` or `path`, else they are `FILE row N`. An image given by path alone is
read from beside the file. May import: types.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from visfeedback.plugins import InputError
from visfeedback.scoring.decode import BadImage
from visfeedback.scoring.settings import ScoreSettings
from visfeedback.scoring.sources import Fetch, Item, text

ROWS = 8
"""Rows decoded at once: memory holds a few times this many encoded images."""
KEPT = 8
"""Batches of rows that are kept for threads which ask a little late."""
NAMES = 4096
"""Rows listed at once."""


class ParquetSource:
    """The rows of several files, one after another."""

    def __init__(self, paths: Sequence[Path], settings: ScoreSettings) -> None:
        self._paths = list(paths)
        self._image, self._prompt = settings.image_column, settings.prompt_column
        self._kinds = [self._check(path) for path in self._paths]
        self._cursors: OrderedDict[int, Cursor] = OrderedDict()
        self._lock = threading.Lock()

    def _check(self, path: Path) -> pa.DataType:
        schema = open_parquet(path).schema_arrow
        if self._image not in schema.names:
            raise InputError(
                f"{path} has no column {self._image!r}; it has {', '.join(schema.names)}: name one with --image-column"
            )
        kind = schema.field(self._image).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return kind
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return kind
        raise InputError(f"{path}: column {self._image!r} is {kind}; expected bytes, or a struct with bytes and path")

    def items(self) -> Iterator[Item]:
        for number, path in enumerate(self._paths):
            stamp = path.stat()
            for row, (name, prompt) in enumerate(self._listed(number)):
                location = f"{number}:{row}"
                shown = name or f"{path.name} row {row}"
                yield Item(shown, prompt, location, f"{path.name}:{stamp.st_size}-{stamp.st_mtime_ns}")

    def _listed(self, number: int) -> Iterator[tuple[str | None, str | None]]:
        """Name and prompt of each row; the bytes are not read."""
        file = open_parquet(self._paths[number])
        known = file.schema_arrow.names
        inside = f"{self._image}.path" if pa.types.is_struct(self._kinds[number]) else None
        outside = [name for name in ("file_name", "path") if name in known]
        columns = [name for name in (inside, *outside, self._prompt) if name and name.partition(".")[0] in known]
        if not columns:
            yield from ((None, None) for _ in range(file.metadata.num_rows))
            return
        for batch in file.iter_batches(NAMES, columns=columns):
            for row in batch.to_pylist():
                struct = row.get(self._image) or {}
                name = struct.get("path") or next((row[key] for key in outside if row[key]), None)
                yield name, text(row.get(self._prompt))

    def fetch(self, location: str) -> Fetch:
        """Reads the row now, in the caller's thread: rows come in order, whatever order the workers finish in."""
        number, row = map(int, location.split(":"))
        with self._lock:
            value = self._cursor(number).row(row)
        return lambda: self._bytes(value, self._paths[number])

    def _cursor(self, number: int) -> Cursor:
        """One open file, in fact: the next one is opened when the rows of the last are done."""
        if number not in self._cursors:
            self._cursors.clear()
            self._cursors[number] = Cursor(self._paths[number], self._image)
        return self._cursors[number]

    def _bytes(self, value: Any, file: Path) -> bytes:
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            value = data if data is not None else (file.parent / path).read_bytes() if path else None
        if value is None:
            raise BadImage("the row has no image")
        return value


class Cursor:
    """Rows of one column, cheap to read forwards and correct backwards."""

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        self._file = open_parquet(path)
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = [sum(counts[:i]) for i in range(len(counts))]
        self._kept: OrderedDict[int, list[Any]] = OrderedDict()  # number of the first row -> rows
        self._next = 0
        self._batches = self._from(0)

    def _from(self, group: int) -> Iterator[pa.RecordBatch]:
        groups = list(range(group, self._file.num_row_groups))
        return self._file.iter_batches(ROWS, row_groups=groups, columns=[self._column])

    def row(self, number: int) -> Any:
        if number < self._next:
            for first, rows in self._kept.items():
                if first <= number < first + len(rows):
                    return rows[number - first]
            self._go_back(number)
        while number >= self._next:
            self._read_on()
        first, rows = next(reversed(self._kept.items()))
        return rows[number - first]

    def _go_back(self, number: int) -> None:
        group = max(i for i, start in enumerate(self._starts) if start <= number)
        self._kept.clear()
        self._next, self._batches = self._starts[group], self._from(group)

    def _read_on(self) -> None:
        """The next few rows; those read long ago are forgotten."""
        try:
            rows = next(self._batches).column(0).to_pylist()
        except (pa.ArrowException, OSError) as error:
            near = f"{self._path} is damaged near row {self._next}"
            raise InputError(f"{near}: {str(error).splitlines()[0]}") from None
        self._kept[self._next] = rows
        self._next += len(rows)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def open_parquet(path: Path) -> parquet.ParquetFile:
    """Raises InputError for a file that is missing, torn or something else."""
    try:
        return parquet.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None
