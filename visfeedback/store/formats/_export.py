"""From the store to rows: what holds, with its samples, and why the rest does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from visfeedback.store.core import CHUNK, Store
from visfeedback.store.formats._carries import Carries
from visfeedback.store.images import read
from visfeedback.store.rows import chunks
from visfeedback.types.records import Feedback, Sample

Judged = tuple[Feedback, tuple[Sample, ...]]


def judged(store: Store, carries: Carries, dropped: Counter[str], judge: str | None = None) -> Iterator[Judged]:
    """Feedback that the format carries, with its samples in the order of `sample_ids`, in the order of arrival."""
    for part in chunks(store.feedback(judge=judge), CHUNK):
        fitting = [record for record in part if not _counted(_unfit(record, carries), dropped)]
        samples = store.samples_of({name for record in fitting for name in record.sample_ids})
        for record in fitting:
            found = [samples.get((record.prompt_id, name)) for name in record.sample_ids]
            if _counted(_missing(found, carries), dropped):
                continue
            yield record, tuple(sample for sample in found if sample)


def _counted(reason: str, dropped: Counter[str]) -> bool:
    if reason:
        dropped[reason] += 1
    return bool(reason)


def _unfit(record: Feedback, carries: Carries) -> str:
    if record.kind not in carries.kinds:
        return record.kind
    if record.kind == "pair" and record.choice not in carries.choices:
        return str(record.choice)
    if carries.one_image and (len(record.sample_ids) != 1 or not record.values):
        return "several images"
    return "gold" if record.gold and "gold" not in carries.feedback else ""


def _missing(found: Sequence[Sample | None], carries: Carries) -> str:
    if None in found:
        return "missing sample"
    return "no image file" if carries.images and any(sample and not sample.path for sample in found) else ""


def together(entries: Iterator[Judged]) -> Iterator[list[Judged]]:
    """Neighbours about the same images in the same order, as layouts with one row for several answers hold them."""
    for _, group in groupby(entries, key=lambda entry: (entry[0].prompt_id, entry[0].sample_ids)):
        yield from chunks(group, CHUNK)


def image_cell(sample: Sample) -> dict[str, Any]:
    """The `{bytes, path}` that datasets' Image column holds; the bytes as they were added."""
    from pathlib import Path

    path = Path(sample.path)
    return {"bytes": read(path) if sample.path else None, "path": path.name if sample.path else sample.id}


def maker(sample: Sample) -> str:
    """Who made it: the model, and the adapter after a plus sign."""
    return f"{sample.model}+{sample.adapter}" if sample.adapter else sample.model
