"""Our own lossless layout for many rows: a folder with prompts.parquet, samples.parquet and feedback.parquet.

`record` holds each record as JSON and is what is read back; the other columns are for those who analyse the files.
samples.parquet has the images inside, as they were added; feedback.parquet has tombstones too, in the order of arrival.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from visfeedback.plugins import InputError
from visfeedback.store.core import Drawn, Store
from visfeedback.store.formats import _items
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import image_cell
from visfeedback.store.formats._parquet import image_type, rows_to, with_features
from visfeedback.store.formats._people import People, keep
from visfeedback.store.formats._rows import Row, rows
from visfeedback.store.images import inspect
from visfeedback.store.rows import chunks
from visfeedback.types.records import Feedback, Prompt, Sample

CARRIES = Carries(
    kinds=("pair", "ranking", "best", "rating", "like", "region", "words", "text", "tombstone"),
    choices=("a", "b", "tie", "both_bad", "skip", "flag"), feedback=tuple(Feedback.model_fields),
    sample=tuple(name for name in Sample.model_fields if name != "path"), unknown=True, datasets="parquet",
)  # fmt: skip
FILES = ("prompts", "samples", "feedback")
STEP = 2000  # records added in one transaction
Model = TypeVar("Model", bound=BaseModel)


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Everything, into a folder that appears whole. ``people`` may put pseudonyms on the judges.

    InputError when the folder is there already.
    """
    if path.exists():
        raise InputError(f"{path} is there already; name a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        counts = {
            "prompt": _prompts(store, temporary / "prompts.parquet"),
            "sample": _samples(store, temporary / "samples.parquet"),
            "feedback": _feedback(store, temporary / "feedback.parquet", people or keep),
        }
        temporary.chmod(0o755)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return counts | {"dropped": {}}


def _prompts(store: Store, path: Path) -> int:
    import pyarrow as pa

    count = 0
    with rows_to(path, pa.schema([("text", pa.string()), ("record", pa.string())])) as put:
        for prompt in store.prompts():
            put({"text": prompt.text, "record": prompt.model_dump_json()})
            count += 1
    return count


def _samples(store: Store, path: Path) -> int:
    import pyarrow as pa

    names = ("id", "prompt_id", "prompt", "model", "adapter")
    schema = pa.schema([("image", image_type()), *((name, pa.string()) for name in names), ("record", pa.string())])
    count = 0
    with rows_to(path, with_features(schema)) as put:
        for sample in store.samples(with_image=False):
            record = sample.model_copy(update={"path": ""}).model_dump_json()
            put({name: getattr(sample, name) for name in names} | {"image": image_cell(sample), "record": record})
            count += 1
    return count


def _feedback(store: Store, path: Path, people: People) -> int:
    import pyarrow as pa

    lists = {"sample_ids": pa.list_(pa.string()), "values": pa.list_(pa.float64()), "sides": pa.list_(pa.int64())}
    names = ("id", "kind", "judge", "criterion", "prompt_id", "choice", "seconds", "gold", "retracts", "created_at")
    kinds = {"seconds": pa.float64(), "gold": pa.bool_()}
    columns = [(name, kinds.get(name, pa.string())) for name in names]
    count = 0
    with rows_to(path, pa.schema([*columns, *lists.items(), ("record", pa.string())])) as put:
        for text in store.feedback_json():
            row = json.loads(text)
            if (judge := people(row["judge"])) != row["judge"]:
                row["judge"] = judge
                text = json.dumps(row, ensure_ascii=False)
            put({name: row.get(name) for name in (*names, *lists)} | {"record": text})
            count += 1
    return count


def read(path: Path, store: Store) -> dict[str, Any]:
    """Add what the folder holds and the store does not have yet."""
    missing = [name for name in FILES if not (path / f"{name}.parquet").is_file()]
    if missing:
        raise InputError(f"{path} has no {missing[0]}.parquet; expected a folder of store export --format parquet")
    counts = {"prompt": 0}
    for part in chunks(_records(path / "prompts.parquet", Prompt), STEP):
        store.add_prompts(record for _, record in part)
        counts["prompt"] += len(part)
    counts |= _items.add(store, rows(path / "samples.parquet", ("image", "record"), only=True), _drawn)
    counts["feedback"] = 0
    for part in chunks(_records(path / "feedback.parquet", Feedback), STEP):
        counts["feedback"] += store.add_feedback(record for _, record in part)
    return counts


def _drawn(row: Row) -> _items.Item:
    sample = _record(row, Sample)
    data = (row.values["image"] or {}).get("bytes") or b""
    picture = inspect(data, row.where) if data else None
    if picture and picture.id != sample.id:
        raise InputError(f"{row.where}: the image is not the one that its record describes; export again")
    return _items.Item((Drawn(sample, data, picture),), ())


def _records(path: Path, model: type[Model]) -> Iterator[tuple[Row, Model]]:
    for row in rows(path, ("record",), only=True):
        yield row, _record(row, model)


def _record(row: Row, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(row.values["record"] or "")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "record"
        raise InputError(f"{row.where}: {where}: {first['msg']}") from None
