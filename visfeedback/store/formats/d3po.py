"""D3PO: folders of images with JSON lists of scores beside them, in the order of the images' names.

A folder: `images/` (0.png, 1.png, ... or 000000.png), `prompt.json` (a list of texts, one for each image or each
group), and one or more lists of scores, here or in folders beside `images/`; equal scores give no gradient, higher is
better. A list has a score for each image, or, as the release's annotators write it, a list for each group of images of
one prompt: `[[0, -1, 0, ...], ...]`; such a list may end early, where its annotator stopped. Every file is a judge,
named by it. Written: one such folder, with flat lists, for each judge's likes and ratings of single images.
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
    scores = {file: list(json_list(file)) for file in _lists(folder)}
    sizes = {_size(file, entries) for file, entries in scores.items() if _grouped(entries)}
    lists = {file: _flat(file, entries, len(images)) for file, entries in scores.items()}
    prompts = _prompts(folder / PROMPTS, len(images), sizes)
    for i, image in enumerate(images):
        values = {str(file): numbers[i] for file, numbers in lists.items() if i < len(numbers)}
        yield Row({"prompt": prompts[i], "image": f"images/{image.name}", "values": values}, folder / PROMPTS, i + 1)


def _lists(folder: Path) -> list[Path]:
    """Lists of scores in the folder and in those beside its images."""
    others = (file for file in folder.glob("*/*.json") if not (file.parent / PROMPTS).exists())
    return sorted([*(file for file in folder.glob("*.json") if file.name != PROMPTS), *others])


def _grouped(entries: list[Any]) -> bool:
    return bool(entries) and all(isinstance(entry, list) for entry in entries)


def _size(file: Path, entries: list[Any]) -> int:
    """Images of a group; all groups of a file have as many."""
    sizes = {len(entry) for entry in entries}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(f"{file} has groups of {sorted(sizes)} scores; expected groups of one size")
    return sizes.pop()


def _flat(file: Path, entries: list[Any], images: int) -> list[Any]:
    """Scores in the order of the images."""
    grouped = _grouped(entries)
    flat = [score for group in entries for score in group] if grouped else entries
    if len(flat) > images or (len(flat) < images and not grouped):
        raise InputError(f"{file} has {len(flat)} entries for {images} images; expected as many")
    return flat


def _prompts(file: Path, images: int, sizes: set[int]) -> list[Any]:
    """A prompt for each image."""
    prompts = list(json_list(file))
    if prompts and images / len(prompts) in sizes:
        prompts = [prompt for prompt in prompts for _ in range(images // len(prompts))]
    if len(prompts) != images:
        raise InputError(f"{file} has {len(prompts)} entries for {images} images; expected as many, or one a group")
    return prompts


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
