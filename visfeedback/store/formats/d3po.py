"""D3PO: folders of images with a bare JSON list of integers beside them, one for each image in the order of its name.

A folder: `images/` (0.png, 1.png, ... or 000000.png), `prompt.json` (a list of texts, one for each image), and one or
more other lists of integers of the same length; equal numbers give no gradient, higher is better. Every list is a
judge, named by its file. Written: one such folder for each judge's likes and ratings of single images.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select

from visfeedback.plugins import InputError
from visfeedback.store.core import Store
from visfeedback.store.formats import _cells, _items
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import Judged, judged
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._rows import Row, json_list
from visfeedback.store.tables import feedback
from visfeedback.types.files import open_atomic
from visfeedback.types.records import Feedback, text_id

CARRIES = Carries(
    kinds=("rating", "like"), feedback=("values", "sample_ids", "prompt_id"), sample=("prompt",), one_image=True
)
PROMPTS = "prompt.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read(path: Path, store: Store) -> dict[str, Any]:
    """A folder, or a folder of such folders. Dropped: damaged images."""
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; expected images/, {PROMPTS} and lists of integers")
    folders = sorted({file.parent for file in path.rglob(PROMPTS)})
    if not folders:
        raise InputError(f"{path} has no {PROMPTS}; expected a list of texts, one for each image")
    return _items.add(store, (row for folder in folders for row in _rows(folder)), _item)


def _rows(folder: Path) -> Iterator[Row]:
    images = sorted((p for p in (folder / "images").glob("*") if p.suffix.lower() in SUFFIXES), key=_by_number)
    if not images:
        raise InputError(f"{folder / 'images'} has no images")
    prompts = list(json_list(folder / PROMPTS))
    lists = {file: list(json_list(file)) for file in sorted(folder.glob("*.json")) if file.name != PROMPTS}
    for file, values in {folder / PROMPTS: prompts, **lists}.items():
        if len(values) != len(images):
            raise InputError(f"{file} has {len(values)} entries for {len(images)} images; expected as many")
    for i, image in enumerate(images):
        values = {str(file): numbers[i] for file, numbers in lists.items()}
        yield Row({"prompt": prompts[i], "image": f"images/{image.name}", "values": values}, folder / PROMPTS, i + 1)


def _by_number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else 0, path.name)


def _item(row: Row) -> _items.Item:
    one = _cells.drawn(row.values["image"], None, _cells.text(row, "prompt"), row)
    records = []
    for file, value in row.values["values"].items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{file}, entry {row.number}: expected an integer, not {value!r:.40}")
        judge = f"human:{Path(file).stem}"
        name = text_id("d3po", one.sample.prompt_id, one.sample.id, judge, str(value), str(row.number))
        where = {"prompt_id": one.sample.prompt_id, "sample_ids": (one.sample.id,)}
        records.append(Feedback(id=name, kind="rating", judge=judge, values=(float(value),), **where))
    return _items.Item((one,), tuple(records))


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """A folder ``path`` with a folder for each judge. Dropped: values that are no integers, and all other kinds.

    InputError when the folder is there and not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is there already; name a new folder")
    people = people or of_store(store)
    dropped, written = Counter[str](), 0
    try:
        for judge in _judges(store):
            name = re.sub(r"[^A-Za-z0-9._-]", "_", people(judge).partition(":")[2] or people(judge))
            whole = _whole(judged(store, CARRIES, dropped, judge), dropped)
            written += _write_judge(whole, path / name, name)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    path.mkdir(parents=True, exist_ok=True)
    return {"images": written, "dropped": dict(sorted(dropped.items()))}


def _judges(store: Store) -> list[str]:
    with store.reading() as connection:
        return sorted(connection.scalars(select(feedback.c.judge).where(feedback.c.kind != "tombstone").distinct()))


def _whole(entries: Iterator[Judged], dropped: Counter[str]) -> Iterator[Judged]:
    for entry in entries:
        if entry[0].values[0].is_integer():
            yield entry
        else:
            dropped["not an integer"] += 1


def _write_judge(entries: Iterator[Judged], folder: Path, name: str) -> int:
    first = next(entries, None)
    if first is None:
        return 0
    count = 0
    with open_atomic(folder / PROMPTS) as prompts, open_atomic(folder / f"{name}.json") as values:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        while first is not None:
            record, (sample,) = first
            shutil.copyfile(sample.path, folder / "images" / f"{count:06d}{Path(sample.path).suffix}")
            comma = ",\n" if count else "[\n"
            prompts.write(comma + json.dumps(sample.prompt, ensure_ascii=False))
            values.write(comma + str(int(record.values[0])))
            count += 1
            first = next(entries, None)
        prompts.write("\n]\n")
        values.write("\n]\n")
    return count
