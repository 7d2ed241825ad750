"""Two folders, liked/ and disliked/, with images in them: the simplest way to say what one thinks.

The prompt of an image: `metadata.jsonl` in the root (file_name, prompt), NAME.txt beside it, or what A1111 and ComfyUI
leave inside the PNG. Written: the two folders with the images as they were added, and `metadata.jsonl`, by which
`datasets.load_dataset("imagefolder")` reads them too.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.store.core import Store
from visfeedback.store.formats import _cells, _items, _said
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import judged, maker
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._png_text import prompt_of
from visfeedback.store.formats._rows import Row, rows
from visfeedback.store.formats.kto import like
from visfeedback.types.files import open_atomic

CARRIES = Carries(
    kinds=("like",), feedback=("kind", "values", "sample_ids", *_said.FIELDS), sample=("prompt", "model"), unknown=True,
    one_image=True, datasets="imagefolder",
)  # fmt: skip
VALUES = {"liked": 1.0, "disliked": -1.0}
LIST = "metadata.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
THEIRS = ("file_name", "prompt", "model", "label")


def read(path: Path, store: Store) -> dict[str, Any]:
    """Dropped: images without a prompt, damaged images."""
    if not any((path / name).is_dir() for name in VALUES):
        raise InputError(f"{path} has neither liked/ nor disliked/; expected a folder with these two")
    return _items.add(store, _rows(path), _item)


def _rows(path: Path) -> Iterator[Row]:
    """Listed images in the order of the list, then those that no list names, by name."""
    listed = set()
    for row in rows(path / LIST, ("file_name",)) if (path / LIST).is_file() else ():
        name = Path(str(row.values["file_name"]))
        if ".." in name.parts or name.is_absolute() or not name.parts or name.parts[0] not in VALUES:
            raise InputError(f"{row.where}: file_name {str(name)!r:.60} is not in liked/ or disliked/")
        listed.add(str(name))
        yield row
    number = 0
    for folder in VALUES:
        for file in sorted((path / folder).rglob("*")):
            name = str(file.relative_to(path))
            if file.suffix.lower() in SUFFIXES and file.is_file() and name not in listed:
                number += 1
                yield Row({"file_name": name}, path / LIST, number)


def _item(row: Row) -> _items.Item:
    name = str(row.values["file_name"])
    file = row.file.parent / name
    prompt, negative = str(row.values.get("prompt") or ""), _said.negative(row)
    if not prompt:
        prompt, negative = _prompt(file)
    if not prompt:
        raise _items.Dropped("no prompt")
    one = _cells.drawn(name, None, prompt, row, model=str(row.values.get("model") or ""), negative=negative)
    if not one.picture:
        raise InputError(f"{row.where}: no file {file}")
    told = _said.heard(row, "human:folders", _cells.extra(row, (*THEIRS, *_said.COLUMNS)))
    return _items.Item((one,), (like(_stable(row), one, VALUES[Path(name).parts[0]], told),))


def _stable(row: Row) -> Row:
    """An image that is neither listed nor numbered is known by its content: more files do not make it another."""
    return row if "prompt" in row.values else row._replace(number=0)


def _prompt(file: Path) -> tuple[str, str]:
    if file.with_suffix(".txt").is_file():
        return file.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip(), ""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(file.read_bytes())) as image:  # header and texts only: nothing is decoded
            return prompt_of(image.info)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "", ""


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Likes and dislikes of single images. InputError when the folder is there and not empty."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is there already; name a new folder")
    people = people or of_store(store)
    dropped, written = Counter[str](), Counter[str]()
    try:
        for folder in VALUES:
            (path / folder).mkdir(parents=True)
        with open_atomic(path / LIST) as file:
            for record, (sample,) in judged(store, CARRIES, dropped):
                folder = "liked" if record.values[0] > 0 else "disliked"
                name = f"{folder}/{written.total():07d}{Path(sample.path).suffix}"
                shutil.copyfile(sample.path, path / name)
                row = {"file_name": name, "prompt": sample.prompt, "model": maker(sample), "label": folder == "liked"}
                file.write(json.dumps(row | _said.said(record, people, sample), ensure_ascii=False) + "\n")
                written[folder] += 1
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return {**written, "dropped": dict(sorted(dropped.items()))}
