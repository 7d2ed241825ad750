"""A plain CSV of pairs: prompt, image_a, image_b, label, and columns of our own; `visfeedback train` reads it too.

Label: `a`, `b`, `tie`, or P(a) as a number. Images lie in a folder beside the file. Texts that a spreadsheet would run
as formulas begin with an apostrophe, which is taken off again on import.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.store.core import Store
from visfeedback.store.formats import _cells, _items, _said
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import judged, maker
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._rows import Row, rows
from visfeedback.store.formats.jsonl import carry_image
from visfeedback.store.images import ImageFolder
from visfeedback.types.files import csv_escape, open_atomic
from visfeedback.types.records import PAIR_VALUES, Choice

CARRIES = Carries(
    kinds=("pair",), choices=("a", "b", "tie", "both_bad"),
    feedback=("kind", "choice", "values", "sample_ids", *_said.FIELDS), sample=("prompt", "model"), unknown=True,
    datasets="csv",
)  # fmt: skip
NEEDED = ("prompt", "image_a", "image_b", "label")
THEIRS = (*NEEDED, "choice", "model_a", "model_b")


def read(path: Path, store: Store) -> dict[str, Any]:
    """Images that are not there stay names. Dropped: damaged images."""
    return _items.add(store, rows(path, NEEDED), _item)


def _item(row: Row) -> _items.Item:
    a, b = (
        _cells.drawn(
            row.values[f"image_{side}"], None, _cells.text(row, "prompt"), row,
            model=str(row.values.get(f"model_{side}") or ""), negative=_said.negative(row),
        )
        for side in ("a", "b")
    )  # fmt: skip
    share = _share(row)
    choice = row.values.get("choice")
    choice = choice if choice in CARRIES.choices else _items.answer(share)
    told = _said.heard(row, "import:csv", _cells.extra(row, (*THEIRS, *_said.COLUMNS)))
    return _items.Item((a, b), (_items.pair(row, a, b, choice, share, **told),))


def _share(row: Row) -> float:
    label: Any = row.values["label"]
    if isinstance(label, str) and label.strip().lower() in ("a", "b", "tie"):
        return PAIR_VALUES[label.strip().lower()][0]
    try:
        share = float(label)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise InputError(f"{row.where}: label {label!r:.40}; expected a, b, tie or P(a) between 0 and 1")
    return share


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Judgements of pairs; skips, flags and other kinds are dropped and counted."""
    people = people or of_store(store)
    folder = ImageFolder(path.with_suffix(".images"))
    dropped, written = Counter[str](), 0
    with open_atomic(path) as file:
        table = csv.DictWriter(file, [*THEIRS, *_said.COLUMNS], lineterminator="\n")
        table.writeheader()
        for record, (a, b) in judged(store, CARRIES, dropped):
            choice: Choice = record.choice or "tie"
            row = {
                "prompt": a.prompt, "image_a": carry_image(a, folder).path, "image_b": carry_image(b, folder).path,
                "label": _label(choice, record.values), "choice": choice, "model_a": maker(a), "model_b": maker(b),
            } | _said.said(record, people, a)  # fmt: skip
            table.writerow({name: csv_escape(cell) if isinstance(cell, str) else cell for name, cell in row.items()})
            written += 1
    return {"pairs": written, "dropped": dict(sorted(dropped.items()))}


def _label(choice: str, values: tuple[float, ...]) -> str | float:
    if values and values != PAIR_VALUES[choice]:
        return values[0]
    return "tie" if choice in ("tie", "both_bad") else choice
