"""ImageRewardDB: images of one prompt, ranked together (1 = best, ties allowed) and rated in three aspects.

Rows (metadata Parquet): image, prompt_id, prompt, classification, image_amount_in_total, rank, overall_rating,
image_text_alignment_rating, fidelity_rating. Also the paper's test.json: {id, prompt, generations: [..],
ranking: [..]}, whose ranks may skip numbers. A group becomes one ranking and up to three ratings of all its images.
Written: the rows, a group for each ranking, with the ratings that the same judge gave to the same images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select

from visfeedback.plugins import InputError
from visfeedback.store.core import CHUNK, Drawn, Store
from visfeedback.store.formats import _cells, _items, _said
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import Judged, image_cell, judged, maker
from visfeedback.store.formats._parquet import image_type, rows_to, with_features
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._rows import Row, rows
from visfeedback.store.images import BadImage
from visfeedback.store.rows import chunks
from visfeedback.store.tables import feedback
from visfeedback.types.records import Feedback, text_id

RATINGS = {
    "overall_rating": "overall", "image_text_alignment_rating": "alignment", "fidelity_rating": "fidelity",
}  # fmt: skip
CARRIES = Carries(
    kinds=("ranking",), feedback=("kind", "values", "sample_ids", *_said.FIELDS), sample=("prompt", "model"),
    unknown=True, datasets="parquet",
)  # fmt: skip
THEIRS = (
    "image", "prompt_id", "prompt", "classification", "image_amount_in_total", "rank", *RATINGS, "model", "image_path",
)  # fmt: skip
OPEN_GROUPS = 64  # groups whose images are not all here yet; the oldest is closed first


def read(path: Path, store: Store) -> dict[str, Any]:
    """Dropped: groups of one image, damaged images."""
    return _items.add(store, _groups(rows(path, ("prompt",))), _item)


def _groups(found: Iterator[Row]) -> Iterator[Row]:
    """One row for each group: its columns are those of the first image, ``members`` the rows of all of them."""
    held: dict[str, list[Row]] = {}
    for row in found:
        if "generations" in row.values:
            yield row
            continue
        if "prompt_id" not in row.values or "rank" not in row.values:
            raise InputError(f"{row.where}: expected prompt_id and rank, or generations and ranking")
        name = str(row.values["prompt_id"])
        held.setdefault(name, []).append(row)
        if len(held[name]) == row.values.get("image_amount_in_total"):
            yield _group(held.pop(name))
        elif len(held) > OPEN_GROUPS:
            yield _group(held.pop(next(iter(held))))
    yield from (_group(members) for members in held.values())


def _group(members: list[Row]) -> Row:
    first = members[0]
    return Row({**first.values, "members": members}, first.file, first.number)


def _item(row: Row) -> _items.Item:
    if "generations" in row.values:
        return _generations(row)
    drawn: list[Drawn] = []
    members: list[Row] = []
    for member in row.values["members"]:
        try:
            drawn.append(_drawn(member, member.values.get("image"), member.values.get("image_path")))
            members.append(member)
        except BadImage:
            continue
    ranks = [_cells.number(member, "rank") for member in members]
    ratings = {
        criterion: [_cells.number(member, column) for member in members]
        for column, criterion in RATINGS.items()
        if members and all(member.values.get(column) is not None for member in members)
    }
    return _ranked(row, drawn, ranks, ratings)


def _drawn(row: Row, cell: Any, name: Any) -> Drawn:
    return _cells.drawn(
        cell, name, _cells.text(row, "prompt"), row, model=str(row.values.get("model") or ""),
        category=str(row.values.get("classification") or ""), negative=_said.negative(row),
    )  # fmt: skip


def _generations(row: Row) -> _items.Item:
    names, ranks = row.values["generations"], row.values.get("ranking")
    if not isinstance(names, list) or not isinstance(ranks, list) or len(names) != len(ranks):
        raise InputError(f"{row.where}: expected one ranking for each of generations")
    return _ranked(row, [_drawn(row, name, name) for name in names], [float(rank) for rank in ranks], {})


def _ranked(row: Row, drawn: list[Drawn], ranks: list[float], ratings: dict[str, list[float]]) -> _items.Item:
    if len(drawn) < 2:
        raise _items.Dropped("group of one image")
    known = (*THEIRS, *_said.COLUMNS, "members", "generations", "ranking")
    told = _said.heard(row, "import:imagereward", _cells.extra(row, known))
    ids = tuple(one.sample.id for one in drawn)
    common: dict[str, Any] = told | {"prompt_id": drawn[0].sample.prompt_id, "sample_ids": ids}
    key = (common["prompt_id"], *ids, told["judge"], str(row.values.get("prompt_id") or row.number))
    values = tuple(rank - min(ranks) for rank in ranks)
    name = row.values.get("feedback_id") or text_id("imagereward", *key, str(ranks))
    records = [Feedback(id=name, kind="ranking", values=values, **common)]
    for criterion, rated in ratings.items():
        name = text_id("imagereward", criterion, *key, str(rated))
        fields: dict[str, Any] = common | {"criterion": criterion}
        records.append(Feedback(id=name, kind="rating", values=tuple(rated), **fields))
    return _items.Item(tuple(drawn), tuple(records))


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Parquet with the images inside. Ratings without a ranking of the same images are dropped and counted."""
    people = people or of_store(store)
    dropped, written, rated = Counter[str](), Counter[str](), 0
    with rows_to(path, _schema()) as put:
        for part in chunks(judged(store, CARRIES, dropped), CHUNK // 10):
            ratings = _ratings(store, {record.prompt_id for record, _ in part})
            for entry in part:
                found = ratings.get(_key(entry[0]), {})
                rated += len(found)
                written["groups"] += 1
                for row in _rows_of(entry, found, people):
                    put(row)
                    written["images"] += 1
    dropped["rating"] -= rated
    return {**written, "dropped": {name: n for name, n in sorted(dropped.items()) if n > 0}}


def _schema() -> Any:
    import pyarrow as pa

    kinds = {"image": image_type(), "image_amount_in_total": pa.int64(), "rank": pa.float64()}
    kinds |= dict.fromkeys(RATINGS, pa.float64())
    return with_features(pa.schema([(name, kinds.get(name, pa.string())) for name in THEIRS] + _said.arrow_fields()))


def _key(record: Feedback) -> tuple[Any, ...]:
    return record.prompt_id, record.judge, record.sample_ids


def _ratings(store: Store, prompt_ids: set[str]) -> dict[tuple[Any, ...], dict[str, Feedback]]:
    """(prompt, judge, images) -> criterion -> rating, of those in the three aspects that hold."""
    gone = select(feedback.c.retracts).where(feedback.c.kind == "tombstone")
    query = select(feedback.c.record).where(
        feedback.c.kind == "rating", feedback.c.prompt_id.in_(prompt_ids), feedback.c.id.not_in(gone),
        feedback.c.criterion.in_(RATINGS.values()),
    )  # fmt: skip
    found: dict[tuple[Any, ...], dict[str, Feedback]] = {}
    with store.reading() as connection:
        for (text,) in connection.execute(query):
            record = Feedback.model_validate_json(text)
            found.setdefault(_key(record), {}).setdefault(record.criterion, record)
    return found


def _rows_of(entry: Judged, ratings: dict[str, Feedback], people: People) -> Iterator[dict[str, Any]]:
    record, samples = entry
    for i, sample in enumerate(samples):
        rated = {c: ratings[name].values[i] for c, name in RATINGS.items() if name in ratings}
        yield {
            "image": image_cell(sample), "image_path": "", "prompt_id": record.id, "prompt": sample.prompt,
            "classification": sample.category, "image_amount_in_total": len(samples), "rank": record.values[i] + 1,
            "model": maker(sample),
        } | rated | _said.said(record, people, sample)  # fmt: skip
