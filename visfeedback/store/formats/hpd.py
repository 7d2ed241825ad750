"""HPDv2 (JSON lists of its train and test split) and HPDv3 (JSON list), with images as files beside the list.

HPDv2 train: {prompt, file_path: [..], human_preference: [1, 0]}; test: {prompt, image_path: [..], rank: [..],
raw_annotations: [{rank, user_hash}]}. HPDv3: {prompt, path1, path2, confidence, choice_dist: [n1, n2]}, where path1 is
always the preferred one: sides are drawn anew on import, or whoever reads positions would learn "the first wins".
Written: the layout of HPDv2 train, one entry a judgement, with keys of our own after its three.
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
from visfeedback.store.formats._export import judged, maker
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._rows import Row, rows
from visfeedback.store.formats.jsonl import carry_image
from visfeedback.store.images import ImageFolder
from visfeedback.types.files import open_atomic
from visfeedback.types.records import Feedback, text_id

CARRIES = Carries(
    kinds=("pair",), choices=("a", "b"), feedback=("kind", "choice", "values", "sample_ids", *_said.FIELDS),
    sample=("prompt", "model"), unknown=True, datasets="json",
)  # fmt: skip
THEIRS = (
    "prompt", "file_path", "human_preference", "image_path", "rank", "raw_annotations", "path1", "path2", "confidence",
    "choice_dist", "model1", "model2", "models", "share",
)  # fmt: skip
EXPECTED = "file_path and human_preference, image_path and rank, or path1 and path2"


def read(path: Path, store: Store) -> dict[str, Any]:
    """Images that are not beside the list stay names. Dropped: entries without a preference, damaged images."""
    return _items.add(store, rows(path, ("prompt",)), _item)


def _item(row: Row) -> _items.Item:
    if "path1" in row.values:
        return _third(row)
    if "human_preference" in row.values:
        return _train(row)
    if "rank" in row.values:
        return _test(row)
    raise InputError(f"{row.where}: expected {EXPECTED}")


def _images(row: Row, names: Any, numbers: Any, models: Any = None) -> tuple[Drawn, ...]:
    if not isinstance(names, list) or not isinstance(numbers, list) or len(names) != len(numbers) or len(names) < 2:
        raise InputError(f"{row.where}: expected one number for each of two or more images")
    prompt = _cells.text(row, "prompt")
    makers = models if isinstance(models, list) and len(models) == len(names) else [""] * len(names)
    return tuple(
        _cells.drawn(name, name, prompt, row, model=str(model or ""), negative=_said.negative(row))
        for name, model in zip(names, makers, strict=True)
    )


def _told(row: Row) -> dict[str, Any]:
    return _said.heard(row, "import:hpd", _cells.extra(row, (*THEIRS, *_said.COLUMNS)))


def _train(row: Row) -> _items.Item:
    values = row.values["human_preference"]
    drawn = _images(row, row.values.get("file_path"), values, row.values.get("models"))
    a, b, *others = drawn
    if others:
        return _items.Item(drawn, (_ranking(row, drawn, [-float(value) for value in values], _told(row), 0),))
    if values[0] == values[1]:
        raise _items.Dropped("no preference")
    choice = "a" if values[0] > values[1] else "b"
    return _items.Item(drawn, (_items.pair(row, a, b, choice, row.values.get("share"), **_told(row)),))


def _test(row: Row) -> _items.Item:
    drawn = _images(row, row.values.get("image_path"), row.values["rank"])
    votes = row.values.get("raw_annotations")
    if not isinstance(votes, list) or not votes:
        return _items.Item(drawn, (_ranking(row, drawn, row.values["rank"], _told(row), 0),))
    records = []
    for i, vote in enumerate(votes):
        told = _told(row) | {"judge": f"human:hpd-{vote.get('user_hash', i)}"}
        records.append(_ranking(row, drawn, vote.get("rank"), told, i))
    return _items.Item(drawn, tuple(records))


def _ranking(row: Row, drawn: tuple[Drawn, ...], ranks: Any, told: dict[str, Any], turn: int) -> Feedback:
    if not isinstance(ranks, list) or len(ranks) != len(drawn):
        raise InputError(f"{row.where}: expected one rank for each of {len(drawn)} images")
    ids = tuple(one.sample.id for one in drawn)
    values = tuple(float(rank) - min(ranks) for rank in ranks)
    name = text_id("hpd", row.values["prompt"], *ids, told["judge"], str(values), str(row.number), str(turn))
    return Feedback(id=name, kind="ranking", prompt_id=drawn[0].sample.prompt_id, sample_ids=ids, values=values, **told)


def _third(row: Row) -> _items.Item:
    votes = row.values.get("choice_dist") or [1, 0]
    models = [row.values.get("model1"), row.values.get("model2")]
    best, other = _images(row, [row.values["path1"], row.values.get("path2")], votes, models)
    share = max(votes) / sum(votes) if sum(votes) else 1.0
    told = _told(row)
    told["extra"] = told["extra"] | {k: row.values[k] for k in ("confidence", "choice_dist") if k in row.values}
    swap = random.Random(f"{row.values['prompt']}\0{best.sample.id}\0{other.sample.id}").random() < 0.5
    drawn, share = ((other, best), 1 - share) if swap else ((best, other), share)
    return _items.Item(drawn, (_items.pair(row, drawn[0], drawn[1], _items.answer(share), share, **told),))


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """A JSON list of decided pairs, images in a folder beside it; judges are pseudonyms unless ``people`` differs."""
    people = people or of_store(store)
    folder = ImageFolder(path.with_suffix(".images"))
    dropped, written = Counter[str](), 0
    with open_atomic(path) as file:
        for record, (a, b) in judged(store, CARRIES, dropped):
            row = {
                "prompt": a.prompt,
                "file_path": [carry_image(sample, folder).path for sample in (a, b)],
                "human_preference": [int(record.choice == "a"), int(record.choice == "b")],
                "models": [maker(a), maker(b)],
                "share": record.values[0] if record.values else float(record.choice == "a"),
            } | _said.said(record, people, a)
            file.write((",\n" if written else "[\n") + json.dumps(row, ensure_ascii=False))
            written += 1
        file.write("\n]\n" if written else "[]\n")
    return {"pairs": written, "dropped": dict(sorted(dropped.items()))}
