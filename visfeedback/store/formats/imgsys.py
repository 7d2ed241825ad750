"""imgsys (fal/imgsys-results): model_a, model_b, preference, prompt; votes on models, without images.

preference: 0 = model_a is better, 1 = model_b, anything else a tie (the arena's own rating program reads it so).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from visfeedback.store.core import Store
from visfeedback.store.formats import _cells, _items, _said
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import judged, maker
from visfeedback.store.formats._parquet import rows_to
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._rows import Row, rows
from visfeedback.types.records import Choice

CARRIES = Carries(
    kinds=("pair",), choices=("a", "b", "tie"), feedback=("kind", "choice", *_said.FIELDS), sample=("prompt", "model"),
    images=False, unknown=True, datasets="parquet",
)  # fmt: skip
THEIRS = ("model_a", "model_b", "preference", "prompt")


def read(path: Path, store: Store) -> dict[str, Any]:
    """A row gives two samples without an image: statistics of models need no more. Dropped: rows without a prompt."""
    return _items.add(store, rows(path, THEIRS), _item)


def _item(row: Row) -> _items.Item:
    if not row.values["prompt"]:
        raise _items.Dropped("no prompt")
    preference = _cells.number(row, "preference")
    choice: Choice = "a" if preference == 0 else "b" if preference == 1 else "tie"
    a, b = (
        _cells.drawn(
            None, f"{name}:{row.values[name]}", _cells.text(row, "prompt"), row,
            model=_cells.text(row, name), negative=_said.negative(row),
        )
        for name in ("model_a", "model_b")
    )  # fmt: skip
    told = _said.heard(row, "import:imgsys", _cells.extra(row, (*THEIRS, *_said.COLUMNS)))
    return _items.Item((a, b), (_items.pair(row, a, b, choice, **told),))


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Judgements of pairs as votes on whoever made the images; a Parquet file."""
    import pyarrow as pa

    people = people or of_store(store)
    dropped, written = Counter[str](), 0
    names = [(name, pa.float64() if name == "preference" else pa.string()) for name in THEIRS]
    with rows_to(path, pa.schema(names + _said.arrow_fields())) as put:
        for record, (a, b) in judged(store, CARRIES, dropped):
            preference = {"a": 0.0, "b": 1.0}.get(str(record.choice), 0.5)
            row = {"model_a": maker(a), "model_b": maker(b), "preference": preference, "prompt": a.prompt}
            put(row | _said.said(record, people, a))
            written += 1
    return {"pairs": written, "dropped": dict(sorted(dropped.items()))}
