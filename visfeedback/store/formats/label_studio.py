"""Label Studio's pairwise projects: the JSON export, a list of tasks with annotations.

A task: {id, data: {two image fields, a prompt}, annotations: [{completed_by, created_at, lead_time, was_cancelled,
result: [{type: "pairwise", to_name: "left,right", value: {selected: "left"}}]}]}. There is no tie and no shuffling of
sides: the first image was on the left for everybody. Of `completed_by` only the number is kept, no address.
Written: the same, with the image that was shown on the left first. Left out: the Ranker tag.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.store.core import Drawn, Store
from visfeedback.store.formats import _cells, _items, _said
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import Judged, judged, maker, together
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._rows import Row, rows
from visfeedback.store.formats.jsonl import carry_image
from visfeedback.store.images import ImageFolder
from visfeedback.types.files import open_atomic
from visfeedback.types.records import Choice, Feedback

CARRIES = Carries(
    kinds=("pair",), choices=("a", "b", "skip"), feedback=("kind", "choice", "sample_ids", *_said.FIELDS),
    sample=("prompt", "model"), unknown=True,
)  # fmt: skip
PROMPTS = ("prompt", "text", "caption", "question")
OURS = ("negative", "models", "swapped")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


def read(path: Path, store: Store) -> dict[str, Any]:
    """Dropped: tasks without an annotation, and with damaged images. A cancelled annotation is a skip."""
    return _items.add(store, rows(path, ("data", "annotations")), _item)


def _item(row: Row) -> _items.Item:
    data, annotations = row.values["data"], row.values["annotations"]
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise InputError(f"{row.where}: expected data and a list of annotations")
    fields = _image_fields(data, annotations, row)
    prompt = next((data[name] for name in PROMPTS if isinstance(data.get(name), str) and data[name]), "")
    models = data.get("models") if isinstance(data.get("models"), list) else ["", ""]
    drawn = tuple(
        _cells.drawn(data[field], None, prompt, row, model=str(model), negative=str(data.get("negative") or ""))
        for field, model in zip(fields, models or ["", ""], strict=True)
    )
    swapped = data.get("swapped") is True
    unknown = {k: _cells.plain(v) for k, v in data.items() if k not in (*fields, *PROMPTS, *OURS)}
    records = [r for one in annotations if (r := _record(row, one, drawn, swapped, unknown)) is not None]
    if not records:
        raise _items.Dropped("no annotation")
    return _items.Item(drawn, tuple(records))


def _image_fields(data: dict[str, Any], annotations: list[Any], row: Row) -> tuple[str, str]:
    """The two fields of the Pairwise tag where they are called like the data, else the two that hold images."""
    for result in (r for one in annotations for r in one.get("result") or []):
        names = tuple(part.strip() for part in str(result.get("to_name", "")).split(","))
        if len(names) == 2 and all(isinstance(data.get(name), str) for name in names):
            return names
    found = [
        name for name, cell in data.items()
        if isinstance(cell, str) and (cell.startswith("data:image") or cell.lower().split("?")[0].endswith(SUFFIXES))
    ]  # fmt: skip
    if len(found) != 2:
        raise InputError(f"{row.where}: expected two image fields in data, found {found}")
    return found[0], found[1]


def _record(
    row: Row, annotation: dict[str, Any], drawn: tuple[Drawn, ...], swapped: bool, unknown: dict[str, Any]
) -> Feedback | None:
    selected = [r["value"].get("selected") for r in annotation.get("result") or [] if r.get("type") == "pairwise"]
    cancelled = annotation.get("was_cancelled") is True
    if not cancelled and (not selected or selected[0] not in ("left", "right")):
        return None
    choice: Choice = "skip" if cancelled else "a" if (selected[0] == "left") != swapped else "b"
    a, b = reversed(drawn) if swapped else drawn
    by = annotation.get("completed_by")
    number = by.get("id") if isinstance(by, dict) else by
    meta = annotation.get("meta") if isinstance(annotation.get("meta"), dict) else {}
    own = Row({"created_at": annotation.get("created_at"), **(meta or {})}, row.file, row.number)
    told = _said.heard(own, f"human:label_studio-{number}", unknown)
    if told.get("seconds") is None and annotation.get("lead_time") is not None and "feedback_id" not in own.values:
        told["seconds"] = float(annotation["lead_time"])
    told.setdefault("sides", () if "feedback_id" in own.values else (0, 1))
    return _items.pair(own, a, b, choice, **told)


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """A JSON list of tasks, images in a folder beside it. Dropped: ties, flags and what else the tag cannot say."""
    people = people or of_store(store)
    folder = ImageFolder(path.with_suffix(".images"))
    dropped = Counter[str]()
    written = annotations = 0
    with open_atomic(path) as file:
        for group in together(judged(store, CARRIES, dropped)):
            for part in _same_sides(group):
                file.write((",\n" if written else "[\n") + json.dumps(_task(part, folder, people, written + 1)))
                written += 1
                annotations += len(part)
        file.write("\n]\n" if written else "[]\n")
    return {"tasks": written, "annotations": annotations, "dropped": dict(sorted(dropped.items()))}


def _same_sides(group: list[Judged]) -> list[list[Judged]]:
    parts: list[list[Judged]] = []
    for entry in group:
        if parts and (parts[-1][0][0].sides, parts[-1][0][0].extra) == (entry[0].sides, entry[0].extra):
            parts[-1].append(entry)
        else:
            parts.append([entry])
    return parts


def _task(group: list[Judged], folder: ImageFolder, people: People, number: int) -> dict[str, Any]:
    swapped = group[0][0].sides == (1, 0)
    pair = group[0][1]
    left, right = reversed(pair) if swapped else pair
    return {
        "id": number,
        "data": {
            "left": carry_image(left, folder).path, "right": carry_image(right, folder).path, "prompt": left.prompt,
            "negative": left.negative, "models": [maker(left), maker(right)], "swapped": swapped,
        },
        "annotations": [_annotation(record, swapped, people, i + 1, left) for i, (record, _) in enumerate(group)],
    }  # fmt: skip


def _annotation(record: Feedback, swapped: bool, people: People, number: int, sample: Any) -> dict[str, Any]:
    selected = "left" if (record.choice == "a") != swapped else "right"
    result = {
        "id": record.id, "type": "pairwise", "from_name": "pairwise", "to_name": "left,right",
        "value": {"selected": selected},
    }  # fmt: skip
    return {
        "id": number,
        "completed_by": people(record.judge),
        "created_at": record.created_at.isoformat(),
        "lead_time": record.seconds,
        "was_cancelled": record.choice == "skip",
        "result": [] if record.choice == "skip" else [result],
        "meta": _said.said(record, people, sample),
    }
