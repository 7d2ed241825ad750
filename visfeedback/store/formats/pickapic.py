"""Pick-a-Pic v1 and v2: Parquet with the images as bytes. What is written here, Diffusion-DPO trainers read.

Columns (dataset cards yuvalkirstain/pickapic_v1, v2): caption, jpg_0, jpg_1 (encoded bytes), label_0, label_1 (1 and 0,
or .5 and .5 for a tie), has_label, are_different, best_image_uid, image_0_uid, model_0, user_id, ranking_id,
num_example_per_prompt, created_at. Read too: the older rows of four (image_1_uid .. image_4_uid, best_image_uid).
Written without ties, skips and flags: the usual readers take a row whose label_0 is not 0 as "the first wins".
Columns of our own follow, which those readers pass over.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from visfeedback.plugins import InputError
from visfeedback.store.core import CHUNK, Store
from visfeedback.store.formats import _cells, _items, _said
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import Judged, judged, maker
from visfeedback.store.formats._parquet import rows_to
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._rows import Row, rows
from visfeedback.store.images import read as read_bytes
from visfeedback.store.rows import chunks
from visfeedback.store.tables import feedback
from visfeedback.types.records import Feedback, text_id

CARRIES = Carries(
    kinds=("pair",), choices=("a", "b"), feedback=("kind", "choice", "sample_ids", *_said.FIELDS),
    sample=("prompt", "model"), unknown=True, datasets="parquet",
)  # fmt: skip
THEIRS = (
    "are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid", "image_0_url",
    "image_1_uid", "image_1_url", "jpg_0", "jpg_1", "label_0", "label_1", "model_0", "model_1", "ranking_id", "user_id",
    "num_example_per_prompt", "__index_level_0__",
)  # fmt: skip
RANKED = tuple(f"image_{i}_uid" for i in range(1, 5))


def read(path: Path, store: Store) -> dict[str, Any]:
    """A Parquet file or a folder of shards. Dropped: rows without a label, and rows with a damaged image."""
    return _items.add(store, rows(path), _item)


def _item(row: Row) -> _items.Item:
    if "caption" not in row.values and {*RANKED, "prompt"} <= row.values.keys():
        return _best_of_four(row)
    prompt = _cells.text(row, "caption")
    if row.values.get("has_label") is False:
        raise _items.Dropped("no label")
    share = _share(row)
    a, b = (
        _cells.drawn(
            row.values.get(f"jpg_{i}"), row.values.get(f"image_{i}_uid"), prompt, row,
            model=str(row.values.get(f"model_{i}") or ""), negative=_said.negative(row),
        )
        for i in (0, 1)
    )  # fmt: skip
    told = _said.heard(row, _judge(row), _cells.extra(row, (*THEIRS, *_said.COLUMNS)))
    return _items.Item((a, b), (_items.pair(row, a, b, _items.answer(share), share, **told),))


def _share(row: Row) -> float:
    share = _cells.number(row, "label_0")
    if not 0 <= share <= 1:
        raise InputError(f"{row.where}: label_0 {share!r}; expected a number between 0 and 1")
    return share


def _judge(row: Row) -> str:
    user = row.values.get("user_id")
    return f"human:pickapic-{user}" if user is not None else "import:pickapic"


def _best_of_four(row: Row) -> _items.Item:
    prompt, best = _cells.text(row, "prompt"), row.values.get("best_image_uid")
    uids = [row.values[name] for name in RANKED if row.values[name]]
    if best not in uids:
        raise _items.Dropped("no label")
    drawn = tuple(_cells.drawn(None, uid, prompt, row) for uid in uids)
    values = tuple(float(uid == best) for uid in uids)
    told = _said.heard(row, _judge(row), _cells.extra(row, (*RANKED, "prompt", *THEIRS, *_said.COLUMNS)))
    name = row.values.get("feedback_id") or text_id(
        "pickapic", prompt, *uids, str(best), told["judge"], str(row.number)
    )
    ids = tuple(one.sample.id for one in drawn)
    record = Feedback(id=name, kind="best", prompt_id=drawn[0].sample.prompt_id, sample_ids=ids, values=values, **told)
    return _items.Item(drawn, (record,))


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Decided pairs whose images are here, one Parquet file. Judges are pseudonyms unless ``people`` says otherwise."""
    people = people or of_store(store)
    dropped, written = Counter[str](), 0
    with rows_to(path, _schema()) as put:
        for part in chunks(judged(store, CARRIES, dropped), CHUNK // 10):  # each holds two images
            examples = _examples(store, {record.prompt_id for record, _ in part})
            for entry in part:
                put(_row(entry, examples, people))
                written += 1
    return {"pairs": written, "dropped": dict(sorted(dropped.items()))}


def _schema() -> Any:
    import pyarrow as pa

    kinds = {
        "are_different": pa.bool_(), "has_label": pa.bool_(), "jpg_0": pa.binary(), "jpg_1": pa.binary(),
        "label_0": pa.float64(), "label_1": pa.float64(), "ranking_id": pa.int64(), "user_id": pa.int64(),
        "num_example_per_prompt": pa.int64(), "created_at": pa.timestamp("us", tz="UTC"),
    }  # fmt: skip
    ours = [(name, kind) for name, kind in _said.arrow_fields() if name not in THEIRS]
    return pa.schema([(name, kinds.get(name, pa.string())) for name in THEIRS[:-1]] + ours)


def _examples(store: Store, prompt_ids: set[str]) -> dict[str, int]:
    """Decided pairs of each prompt: the PickScore loss divides by them."""
    gone = select(feedback.c.retracts).where(feedback.c.kind == "tombstone")
    query = select(feedback.c.prompt_id, func.count()).where(
        feedback.c.prompt_id.in_(prompt_ids), feedback.c.choice.in_(("a", "b")), feedback.c.kind == "pair",
        feedback.c.id.not_in(gone),
    )  # fmt: skip
    with store.reading() as connection:
        return {row[0]: row[1] for row in connection.execute(query.group_by(feedback.c.prompt_id))}


def _row(entry: Judged, examples: dict[str, int], people: People) -> dict[str, Any]:
    record, (a, b) = entry
    ours = _said.said(record, people, a)
    return ours | {
        "are_different": a.id != b.id,
        "best_image_uid": a.id if record.choice == "a" else b.id,
        "caption": a.prompt,
        "created_at": record.created_at,
        "has_label": True,
        "image_0_uid": a.id, "image_1_uid": b.id, "image_0_url": "", "image_1_url": "",
        "jpg_0": read_bytes(Path(a.path)), "jpg_1": read_bytes(Path(b.path)),
        "label_0": float(record.choice == "a"), "label_1": float(record.choice == "b"),
        "model_0": maker(a), "model_1": maker(b),
        "ranking_id": _number(record.id), "user_id": _number(ours["judge"]),
        "num_example_per_prompt": examples.get(record.prompt_id, 1),
    }  # fmt: skip


def _number(name: str) -> int:
    """A positive 63-bit number that stands for a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
