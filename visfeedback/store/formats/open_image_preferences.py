"""Open Image Preferences (Argilla): the results with every answer, and the binarized set.

Results: images {image_1, image_2, prompt}, model_1, model_2, and lists preference.responses, .users, .status; answers
image_1, image_2, both_good, both_bad, toxic_content. Binarized: prompt, chosen, rejected, chosen_model, rejected_model;
the chosen one always comes first there, so sides are drawn anew on import. The re-annotation with Rapidata's columns is
read by the format `rapidata`. Written: the results, one row for neighbouring answers about one pair.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.store.core import Drawn, Store
from visfeedback.store.formats import _cells, _items, _said
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import Judged, image_cell, judged, maker, together
from visfeedback.store.formats._parquet import image_type, rows_to, with_features
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._rows import Row, rows
from visfeedback.types.records import Choice, Feedback

CARRIES = Carries(
    kinds=("pair",), choices=("a", "b", "tie", "both_bad", "flag", "skip"),
    feedback=("kind", "choice", "sample_ids", *_said.FIELDS), sample=("prompt", "model"), unknown=True,
    datasets="parquet",
)  # fmt: skip
ANSWERS: dict[str, Choice] = {
    "image_1": "a", "image_2": "b", "both_good": "tie", "both_bad": "both_bad", "toxic_content": "flag",
}  # fmt: skip
LISTS = ("preference.responses", "preference.responses.users", "preference.responses.status")
THEIRS = ("id", "status", "_server_id", "images", "prompt", "model_1", "model_2", *LISTS, "answers")
BINARIZED = ("id", "prompt", "chosen", "rejected", "chosen_model", "rejected_model")


def read(path: Path, store: Store) -> dict[str, Any]:
    """Parquet or JSON. Dropped: rows without an answer, damaged images; drafts are not answers."""
    return _items.add(store, rows(path), _item)


def _item(row: Row) -> _items.Item:
    if {"chosen", "rejected"} <= row.values.keys():
        return _binarized(row)
    if not isinstance(row.values.get("images"), dict) or LISTS[0] not in row.values:
        raise InputError(f"{row.where}: expected images and {LISTS[0]}, or chosen and rejected")
    images = row.values["images"]
    prompt = str(images.get("prompt") or row.values.get("prompt") or "")
    drawn = tuple(
        _cells.drawn(
            images.get(f"image_{i}"), None, prompt, row,
            model=str(row.values.get(f"model_{i}") or ""), negative=_said.negative(row),
        )
        for i in (1, 2)
    )  # fmt: skip
    records = _responses(row, drawn)
    if not records:
        raise _items.Dropped("no answer")
    return _items.Item(drawn, records)


def _responses(row: Row, drawn: tuple[Drawn, ...]) -> tuple[Feedback, ...]:
    answers, users, states = (list(row.values.get(name) or []) for name in LISTS)
    told_each = _each(row, len(answers))
    records = []
    for i, answer in enumerate(answers):
        state = states[i] if i < len(states) else "submitted"
        if state not in ("submitted", "discarded"):
            continue
        if answer not in ANSWERS and state == "submitted":
            raise InputError(f"{row.where}: answer {answer!r:.40}; expected {', '.join(ANSWERS)}")
        choice: Choice = "skip" if state == "discarded" else ANSWERS[answer]
        judge = f"human:argilla-{users[i]}" if i < len(users) else "import:open_image_preferences"
        own = Row({**told_each[i], "negative": row.values.get("negative")}, row.file, row.number)
        told = _said.heard(own, judge, _cells.extra(row, (*THEIRS, *_said.COLUMNS)))
        records.append(_items.pair(own, drawn[0], drawn[1], choice, **told))
    return tuple(records)


def _each(row: Row, count: int) -> list[dict[str, Any]]:
    """What we say of each answer, in a column of our own: a list as JSON text."""
    try:
        found = json.loads(row.values.get("answers") or "[]")
    except (TypeError, ValueError):
        found = []
    fits = isinstance(found, list) and len(found) == count and all(isinstance(one, dict) for one in found)
    return found if fits else [{} for _ in range(count)]


def _binarized(row: Row) -> _items.Item:
    prompt = _cells.text(row, "prompt")
    best, other = (
        _cells.drawn(row.values[name], None, prompt, row, model=str(row.values.get(f"{name}_model") or ""))
        for name in ("chosen", "rejected")
    )
    swap = random.Random(f"{prompt}\0{best.sample.id}\0{other.sample.id}").random() < 0.5
    drawn = (other, best) if swap else (best, other)
    told = _said.heard(row, "import:open_image_preferences", _cells.extra(row, (*BINARIZED, *_said.COLUMNS)))
    return _items.Item(drawn, (_items.pair(row, drawn[0], drawn[1], "b" if swap else "a", **told),))


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Parquet with the images inside. Skips are written as discarded answers."""
    people = people or of_store(store)
    dropped = Counter[str]()
    written = answers = 0
    with rows_to(path, _schema()) as put:
        for group in together(judged(store, CARRIES, dropped)):
            put(_row(group, people))
            written += 1
            answers += len(group)
    return {"rows": written, "answers": answers, "dropped": dict(sorted(dropped.items()))}


def _schema() -> Any:
    import pyarrow as pa

    images = pa.struct([("image_1", image_type()), ("image_2", image_type()), ("prompt", pa.string())])
    kinds = {"images": images, **dict.fromkeys(LISTS, pa.list_(pa.string()))}
    names = [(name, kinds.get(name, pa.string())) for name in THEIRS]
    return with_features(pa.schema([*names, ("negative", pa.string())]))


def _row(group: list[Judged], people: People) -> dict[str, Any]:
    first, (a, b) = group[0]
    names: dict[str, str] = {choice: answer for answer, choice in ANSWERS.items()}
    records = [record for record, _ in group]
    own = [{k: v for k, v in _said.said(r, people, a).items() if k != "negative"} for r in records]
    return {
        "id": first.id, "status": "completed", "_server_id": first.id, "prompt": a.prompt, "negative": a.negative,
        "images": {"image_1": image_cell(a), "image_2": image_cell(b), "prompt": a.prompt},
        "model_1": maker(a), "model_2": maker(b),
        LISTS[0]: [names.get(str(r.choice), "") for r in records],
        LISTS[1]: [people(r.judge) for r in records],
        LISTS[2]: ["discarded" if r.choice == "skip" else "submitted" for r in records],
        "answers": json.dumps(own, ensure_ascii=False),
    }  # fmt: skip
