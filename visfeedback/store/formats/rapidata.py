"""Rapidata's text-to-image preferences, old and new.

Old: prompt, image1, image2, votes_image1, votes_image2, model1, model2, detailed_results. New: instead of votes, for
each of preference, coherence and alignment: weighted_results_image1_X, weighted_results_image2_X, detailed_results_X. A
row is what many people said together: one record per criterion, whose values are the two images' shares. Also the
re-annotation of Open Image Preferences with votes. Written: the new layout. Left out: the rich-feedback set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
from visfeedback.types.records import PAIR_VALUES, Feedback

CRITERIA = {"preference": "overall", "coherence": "coherence", "alignment": "alignment"}
CARRIES = Carries(
    kinds=("pair",), choices=("a", "b", "tie", "both_bad"),
    feedback=("kind", "values", "sample_ids", *(name for name in _said.FIELDS if name not in ("id", "criterion"))),
    sample=("prompt", "model"), unknown=True, datasets="parquet",
)  # fmt: skip
IMAGES = ("prompt", "image1", "image2", "model1", "model2")
WEIGHTS = tuple(f"weighted_results_image{i}_{name}" for name in CRITERIA for i in (1, 2))
DETAILS = tuple(f"detailed_results_{name}" for name in CRITERIA)
OLD = ("votes_image1", "votes_image2", "detailed_results", "image1_path", "image2_path", "images")


def read(path: Path, store: Store) -> dict[str, Any]:
    """Parquet, JSON or CSV. Dropped: rows that nobody judged, damaged images."""
    return _items.add(store, rows(path, ("prompt", "image1", "image2")), _item)


def _item(row: Row) -> _items.Item:
    drawn = tuple(
        _cells.drawn(
            row.values[f"image{i}"], row.values.get(f"image{i}_path"), _cells.text(row, "prompt"), row,
            model=str(row.values.get(f"model{i}") or ""), negative=_said.negative(row),
        )
        for i in (1, 2)
    )  # fmt: skip
    known = (*IMAGES, *WEIGHTS, *DETAILS, *OLD, *_said.COLUMNS)
    records = tuple(_records(row, drawn, _cells.extra(row, known)))
    if not records:
        raise _items.Dropped("nobody judged it")
    return _items.Item(drawn, records)


def _records(row: Row, drawn: tuple[Drawn, ...], unknown: dict[str, Any]) -> Iterator[Feedback]:
    if "votes_image1" in row.values:
        votes = [_cells.number(row, f"votes_image{i}") for i in (1, 2)]
        yield from _record(row, drawn, votes, "overall", "detailed_results", unknown | {"votes": votes})
        return
    if not set(WEIGHTS) & row.values.keys():
        raise InputError(f"{row.where}: expected votes_image1 and votes_image2, or {WEIGHTS[0]} and {WEIGHTS[1]}")
    for name, criterion in CRITERIA.items():
        columns = [f"weighted_results_image{i}_{name}" for i in (1, 2)]
        if all(row.values.get(column) is not None for column in columns):
            shares = [_cells.number(row, column) for column in columns]
            yield from _record(row, drawn, shares, criterion, f"detailed_results_{name}", unknown)


def _record(
    row: Row, drawn: tuple[Drawn, ...], counts: list[float], criterion: str, details: str, unknown: dict[str, Any]
) -> Iterator[Feedback]:
    if min(counts) < 0:
        raise InputError(f"{row.where}: shares and votes cannot be below 0")
    if not sum(counts):
        return
    if row.values.get(details):
        unknown = unknown | {"detailed_results": row.values[details]}
    told = _said.heard(row, "import:rapidata", unknown) | {"criterion": criterion}
    share = counts[0] / sum(counts)
    named = row._replace(values={k: v for k, v in row.values.items() if k != "feedback_id"})  # one id, several records
    yield _items.pair(named, drawn[0], drawn[1], _items.answer(share), share, **told)


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Neighbouring records of one judge about one pair, one for each criterion, share a row."""
    import pyarrow as pa

    people = people or of_store(store)
    dropped, written = Counter[str](), 0
    kinds = {"image1": image_type(), "image2": image_type(), **dict.fromkeys(WEIGHTS, pa.float32())}
    columns = [(name, kinds.get(name, pa.string())) for name in (*IMAGES, *WEIGHTS, *DETAILS)]
    with rows_to(path, with_features(pa.schema(columns + _said.arrow_fields()))) as put:
        for group in together(_known(judged(store, CARRIES, dropped), dropped)):
            for part in _rows_of(group):
                put(_row(part, people))
                written += 1
    return {"rows": written, "dropped": dict(sorted(dropped.items()))}


def _known(entries: Iterator[Judged], dropped: Counter[str]) -> Iterator[Judged]:
    for entry in entries:
        if entry[0].criterion in CRITERIA.values():
            yield entry
        else:
            dropped[f"criterion {entry[0].criterion}"] += 1


def _rows_of(group: list[Judged]) -> Iterator[list[Judged]]:
    """A row ends where a criterion comes again or anything else that a row says once changes."""
    part: list[Judged] = []
    for entry in group:
        if part and (_said_once(entry) != _said_once(part[0]) or entry[0].criterion in {r.criterion for r, _ in part}):
            yield part
            part = []
        part.append(entry)
    yield part


def _said_once(entry: Judged) -> tuple[Any, ...]:
    record = entry[0]
    extra = {k: v for k, v in record.extra.items() if k != "detailed_results"}
    return record.judge, record.sides, record.seconds, record.note, record.gold, record.created_at, str(extra)


def _row(part: list[Judged], people: People) -> dict[str, Any]:
    first, (a, b) = part[0]
    names = {criterion: name for name, criterion in CRITERIA.items()}
    row: dict[str, Any] = {
        "prompt": a.prompt, "image1": image_cell(a), "image2": image_cell(b), "model1": maker(a), "model2": maker(b),
    }  # fmt: skip
    for record, _ in part:
        values = record.values or PAIR_VALUES[record.choice or "tie"]
        name = names[record.criterion]
        row |= {f"weighted_results_image{i + 1}_{name}": value for i, value in enumerate(values)}
        row[f"detailed_results_{name}"] = record.extra.get("detailed_results")
    alone = first.model_copy(update={"extra": {k: v for k, v in first.extra.items() if k != "detailed_results"}})
    return row | _said.said(alone, people, a)
