"""Parquet files written piece by piece, whole or absent, with the notes by which `datasets` knows image columns."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visfeedback.types.files import sync_folder

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 5000
BYTES = 32 << 20  # of images held before they are written


def image_type() -> pa.DataType:
    """The storage of an image cell."""
    import pyarrow as pa

    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with the note that makes `datasets.load_dataset` decode the cells of `image_type` as images."""
    features = {field.name: _feature(field.type) for field in schema}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> dict[str, Any]:
    import pyarrow as pa

    if kind == image_type():
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _feature(kind.field(i).type) for i in range(kind.num_fields)}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    names = {"double": "float64", "float": "float32", "timestamp[us, tz=UTC]": "timestamp[us, tz=UTC]"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}


@contextmanager
def rows_to(path: Path, schema: pa.Schema) -> Iterator[Callable[[dict[str, Any]], None]]:
    """``with rows_to(path, schema) as put: put({...})``; the file appears when the block ends well."""
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            put = _Buffer(writer, schema)
            yield put
            put.flush()
        _settle(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _Buffer:
    """Rows on their way into a Parquet file."""

    def __init__(self, writer: Any, schema: pa.Schema) -> None:
        self.writer, self.schema = writer, schema
        self.heavy = [field.name for field in schema if "binary" in str(field.type)]
        self.rows: list[dict[str, Any]] = []
        self.held = 0

    def __call__(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.held += sum(_weight(row.get(name)) for name in self.heavy)
        if len(self.rows) >= ROWS or self.held >= BYTES:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self.rows:
            self.writer.write_batch(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
        self.rows, self.held = [], 0


def _weight(cell: Any) -> int:
    if isinstance(cell, bytes):
        return len(cell)
    if isinstance(cell, dict):
        return sum(_weight(inner) for inner in cell.values())
    return 0


def _settle(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)
    os.replace(temporary, path)
    sync_folder(path.parent)
