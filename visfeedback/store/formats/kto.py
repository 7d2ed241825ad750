"""Likes one by one, as KTO-style trainers eat them: Parquet with caption, image and label (true = liked).

No published layout has images as completions, so this one is ours; text trainers say prompt, completion, label.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.store.core import Store
from visfeedback.store.formats import _cells, _items, _said
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import image_cell, judged, maker
from visfeedback.store.formats._parquet import image_type, rows_to, with_features
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._rows import Row, rows
from visfeedback.types.records import Feedback, text_id

CARRIES = Carries(
    kinds=("like",), feedback=("kind", "values", "sample_ids", *_said.FIELDS), sample=("prompt", "model"), unknown=True,
    one_image=True, datasets="parquet",
)  # fmt: skip
THEIRS = ("caption", "image", "label", "model")
LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "like": 1.0, "liked": 1.0} | dict.fromkeys(
    ("false", "0", "0.0", "-1", "-1.0", "dislike", "disliked"), -1.0
)


def read(path: Path, store: Store) -> dict[str, Any]:
    """Parquet, JSON lines or CSV with caption or prompt, image or completion, label. Dropped: damaged images."""
    return _items.add(store, rows(path, ("label",)), _item)


def _item(row: Row) -> _items.Item:
    caption = "caption" if "caption" in row.values else "prompt"
    image = "image" if "image" in row.values else "completion"
    if image not in row.values:
        raise InputError(f"{row.where}: no 'image'; expected {', '.join(THEIRS[:3])}")
    one = _cells.drawn(
        row.values[image], None, _cells.text(row, caption), row,
        model=str(row.values.get("model") or ""), negative=_said.negative(row),
    )  # fmt: skip
    label = str(row.values["label"]).strip().lower()
    if label not in LABELS:
        raise InputError(f"{row.where}: label {row.values['label']!r:.40}; expected true or false")
    told = _said.heard(row, "import:kto", _cells.extra(row, (*THEIRS, caption, image, *_said.COLUMNS)))
    return _items.Item((one,), (like(row, one, LABELS[label], told),))


def like(row: Row, one: Any, value: float, told: dict[str, Any]) -> Feedback:
    """A like (1) or dislike (-1) of one image."""
    name = row.values.get("feedback_id") or text_id(
        "like", one.sample.prompt_id, one.sample.id, str(value), told["judge"], str(row.number)
    )
    return Feedback(
        id=name, kind="like", prompt_id=one.sample.prompt_id, sample_ids=(one.sample.id,), values=(value,), **told
    )  # fmt: skip


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Likes and dislikes; everything else is dropped and counted."""
    import pyarrow as pa

    people = people or of_store(store)
    dropped, written = Counter[str](), 0
    kinds = {"image": image_type(), "label": pa.bool_()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in THEIRS] + _said.arrow_fields())
    with rows_to(path, with_features(schema)) as put:
        for record, (sample,) in judged(store, CARRIES, dropped):
            row = {"caption": sample.prompt, "image": image_cell(sample), "model": maker(sample)}
            put(row | {"label": record.values[0] > 0} | _said.said(record, people, sample))
            written += 1
    return {"likes": written, "dropped": dict(sorted(dropped.items()))}
