"""Our own lossless layout: one JSON object a line, images in a folder beside it.

The first line is `{"visfeedback": 1}`; then `{"prompt": ...}`, `{"sample": ...}` and `{"feedback": ...}` hold one
record each, tombstones included, in the order of arrival. `sample.path` is relative to the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visfeedback.plugins import InputError, nearest
from visfeedback.store.core import CHUNK, Drawn, Store
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._people import People, keep
from visfeedback.store.images import ImageFolder
from visfeedback.store.images import read as read_bytes
from visfeedback.store.rows import chunks
from visfeedback.types.files import open_atomic
from visfeedback.types.records import Feedback, Prompt, Sample

CARRIES = Carries(
    kinds=("pair", "ranking", "best", "rating", "like", "region", "words", "text", "tombstone"),
    choices=("a", "b", "tie", "both_bad", "skip", "flag"), feedback=tuple(Feedback.model_fields),
    sample=tuple(name for name in Sample.model_fields if name != "path"), unknown=True,
)  # fmt: skip
LAYOUT = 1
RECORDS = {"prompt": Prompt, "sample": Sample, "feedback": Feedback}


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Write everything; the file appears when all of it and all images are on disk.

    ``people`` may put pseudonyms on the judges.
    """
    counts = dict.fromkeys(RECORDS, 0)
    folder = ImageFolder(path.with_suffix(".images"))
    with open_atomic(path) as file:
        file.write(json.dumps({"visfeedback": LAYOUT}) + "\n")
        for name, text in _everything(store, folder, people or keep):
            counts[name] += 1
            file.write(f'{{"{name}": {text}}}\n')
    return counts | {"dropped": {}}


def _everything(store: Store, folder: ImageFolder, people: People) -> Iterator[tuple[str, str]]:
    """Kinds of records and their JSON; feedback goes out as it is kept, because there are millions of it."""
    yield from (("prompt", prompt.model_dump_json()) for prompt in store.prompts())
    yield from (("sample", carry_image(sample, folder).model_dump_json()) for sample in store.samples(with_image=False))
    for text in store.feedback_json():
        yield "feedback", text if people is keep else _renamed(text, people)


def _renamed(text: str, people: People) -> str:
    record = Feedback.model_validate_json(text)
    return record.model_copy(update={"judge": people(record.judge)}).model_dump_json()


def carry_image(sample: Sample, folder: ImageFolder) -> Sample:
    """Copy a stored image into ``folder`` and point the sample there, relative to the folder's parent."""
    if not sample.path:
        return sample  # known by name only
    source = Path(sample.path)
    copy = folder.path(source.stem, source.suffix)
    if not copy.is_file():
        folder.put(read_bytes(source), source.stem, source.suffix)
    return sample.model_copy(update={"path": str(copy.relative_to(folder.root.parent))})


def read(path: Path, store: Store) -> dict[str, Any]:
    """Add what the file holds and the store does not have yet. InputError names the line that does not fit."""
    counts = dict.fromkeys(RECORDS, 0)
    for name, group in groupby(_lines(path), key=lambda item: item[0]):
        for part in chunks((record for _, record in group), CHUNK):
            counts[name] += _add(store, name, part, path.parent)
    return counts


def _add(store: Store, name: str, records: list[Any], root: Path) -> int:
    if name == "sample":
        named = [Drawn(record) for record in records if not record.path]
        return store.add_drawn(named) + store.add_samples([record for record in records if record.path], root)
    if name == "feedback":
        return store.add_feedback(records)
    store.add_prompts(records)
    return len(records)


def _lines(path: Path) -> Iterator[tuple[str, Prompt | Sample | Feedback]]:
    if not path.is_file():
        raise InputError(f"no file {path}")
    with path.open(encoding="utf-8", errors="replace") as file:
        _check_header(path, file.readline())
        for number, line in enumerate(file, 2):
            if line.strip():
                yield _record(line, f"{path}, line {number}")


def _check_header(path: Path, line: str) -> None:
    try:
        layout = json.loads(line)["visfeedback"]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f'{path} does not begin with {{"visfeedback": {LAYOUT}}}; for other layouts type --format'
        ) from None
    if layout != LAYOUT:
        raise InputError(f"{path} has layout {layout}, this program reads {LAYOUT}; update visfeedback")


def _record(line: str, where: str) -> tuple[str, Prompt | Sample | Feedback]:
    try:
        ((name, value),) = json.loads(line).items()
    except (ValueError, AttributeError):
        raise InputError(f'{where}: expected one record such as {{"feedback": {{...}}}}') from None
    if name not in RECORDS:
        raise InputError(f"{where}: no record {name!r}{nearest(name, RECORDS)}")
    try:
        return name, RECORDS[name].model_validate(value, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or name
        raise InputError(f"{where}: {field}: {first['msg']}") from None
