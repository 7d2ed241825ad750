"""Stored images to learn from one by one, each with its prompt and, unless a reward scores them, its score.

Sources: a folder of `visfeedback generate`, a folder with metadata.jsonl or NAME.txt, rows of a jsonl, csv or parquet
file, or what people said of a store's images. Instead of a score a row, or an answer in the store, may bring grades in
words (Good, Normal, Bad on several dimensions), which become LiFT's weights of .9, .2 and .05 and are averaged; with
rwr's ``weighting = "reward"`` that is its loss. LiFT divides the error of x0 by 1 - abar, which for a v model is the
error of v that is learned here anyway. May import: types, plugins, store, preferences, sampling.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from visfeedback import store
from visfeedback.plugins import InputError
from visfeedback.preferences import files
from visfeedback.preferences.weights import GRADES, verbal_weight
from visfeedback.sampling.samples import SAMPLES
from visfeedback.training.data import content_id
from visfeedback.training.settings import Data
from visfeedback.types.addresses import without_passwords
from visfeedback.types.records import Frozen, text_id

IMAGE, PROMPT = ("image", "path", "file_name"), ("prompt", "text", "caption")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"
KINDS = {"rating": "ratings", "words": "grades in words", "other": "other answers"}
"""what answers are on one scale, for people"""


class Picture(Frozen):
    """One image to learn from."""

    id: str
    """names its noise; the same in every run on the same data"""
    prompt: str
    image: str
    """names its content"""
    path: str
    """absolute"""
    score: float | None = None
    """None until a reward gives one"""
    group: str = ""
    """images with the same one are compared; their prompt when left out"""


def load_images(data: Data, scored: bool) -> list[Picture]:
    """The images that ``data`` names; with ``scored`` a reward will score them, else they must bring a score.

    Raises InputError when there are none, or no prompt, image or score.
    """
    if data.images:
        found = list(_numbered(_rows(Path(data.images).expanduser())))
        without = next((picture for picture in found if picture.score is None), None)
        if without is not None and not scored:
            raise InputError(
                f"{data.images}: {Path(without.path).name} has no score; name a reward to score it: --reward.name NAME"
            )
    elif data.store:
        found = _from_store(data, scored)
    else:
        raise InputError("nothing to learn from; expected --data.images SRC or --data.store sqlite:///prefs.db")
    if not found:
        raise InputError(f"{data.images or without_passwords(data.store)} holds no scored images to learn from")
    return found


def load_real(data: Data) -> list[Picture]:
    """The images of ``data.real``; none when nothing is named."""
    return list(_numbered(_rows(Path(data.real).expanduser()))) if data.real else []


def _rows(source: Path) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
    """(prompt, image, the row) of a folder or a file."""
    if source.is_dir() and not (source / SAMPLES).is_file() and not (source / METADATA).is_file():
        yield from _notes(source)
        return
    file = source
    if source.is_dir():
        file = source / SAMPLES if (source / SAMPLES).is_file() else source / METADATA
    if not file.is_file():
        raise InputError(f"no {source}; expected a folder of images or a .jsonl, .csv or .parquet file")
    for number, row in enumerate(_read(file), 1):
        name, prompt = (_first(row, keys) for keys in (IMAGE, PROMPT))
        if not isinstance(name, str) or not isinstance(prompt, str) or not prompt:
            raise InputError(f"{file}, row {number}: expected an image and a prompt")
        path = file.parent / name
        if not path.is_file():
            raise InputError(f"{file}, row {number}: no file {path}")
        yield prompt, path, row


def _read(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.suffix == ".parquet":
        from pyarrow import parquet

        yield from parquet.read_table(file).to_pylist()
    else:
        yield from files._rows(file)


def _notes(folder: Path) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
    """NAME.png with the prompt in NAME.txt."""
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not images:
        raise InputError(f"{folder} has no images; expected {SAMPLES}, {METADATA}, or NAME.png with NAME.txt")
    for path in images:
        note = path.with_suffix(".txt")
        text = note.read_text(encoding="utf-8-sig").strip() if note.is_file() else ""
        if not text:
            raise InputError(f"{path} has no prompt; expected it in {note.name} beside it, or in {METADATA}")
        yield text, path, {}


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _numbered(rows: Iterator[tuple[str, Path, Mapping[str, Any]]]) -> Iterator[Picture]:
    """Give ids; the same image and prompt that come twice get two."""
    seen: dict[str, int] = {}
    for prompt, path, row in rows:
        image = content_id(path)
        name = text_id(prompt, image)
        seen[name] = seen.get(name, 0) + 1
        yield Picture(
            id=name if seen[name] == 1 else f"{name}-{seen[name]}", prompt=prompt, image=image,
            path=str(path.absolute()), score=_score(row, path), group=str(_first(row, ("group",)) or ""),
        )  # fmt: skip


def _score(row: Mapping[str, Any], path: Path) -> float | None:
    value = row.get("score")
    if value is None or value == "":
        return _grade(row.get(GRADES), path)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"score {value!r} of {path.name}; expected a number")
    return number


def _grade(said: Any, path: Path) -> float | None:
    """Weight of grades in words: by dimension, as a list, or in one text with commas or semicolons between them."""
    if said is None or len(said) == 0:
        return None
    words = re.split(r"[,;]", said) if isinstance(said, str) else said
    try:
        return verbal_weight(words)
    except InputError as error:
        raise InputError(f"grades of {path.name}: {error}") from None


def _from_store(data: Data, scored: bool) -> list[Picture]:
    """Every image of the store for a reward, else those that people said something of, by what they said."""
    with store.open(data.store, create=False) as opened:
        samples = {sample.id: sample for sample in opened.samples()}
        said = opened.feedback()
        scores = {} if scored else opinions(said, data.criterion)
    return [
        Picture(id=text_id(s.prompt, s.id), prompt=s.prompt, image=s.id, path=s.path, score=scores.get(s.id))
        for s in samples.values()
        if scored or s.id in scores
    ]


def opinions(said: Any, criterion: str = "overall") -> dict[str, float]:
    """Sample id -> mean of what was said of it: ratings as they are; likes, pairs and choices from -1 to 1; grades in
    words as LiFT weighs them.

    Raises InputError when there are answers of two of these kinds: they have no common scale.
    """
    said, kinds = list(said), dict[str, dict[str, list[float]]](rating={}, words={}, other={})
    retracted = {record.retracts for record in said if record.kind == "tombstone"}
    for record in said:
        if record.id in retracted or record.criterion != criterion or record.kind in ("tombstone", "ranking"):
            continue
        if GRADES in record.extra:
            weight = verbal_weight(record.extra[GRADES])
            for sample in record.sample_ids:
                kinds["words"].setdefault(sample, []).append(weight)
            continue
        shares = record.kind in ("pair", "best")
        for sample, value in zip(record.sample_ids, record.values, strict=False):
            kind = kinds["rating" if record.kind == "rating" else "other"]
            kind.setdefault(sample, []).append(2 * value - 1 if shares else value)
    if sum(map(bool, kinds.values())) > 1:
        there = " and ".join(KINDS[name] for name, found in kinds.items() if found)
        raise InputError(
            f"the store holds {there}, which have no common scale; export one kind, or let a reward score the images: "
            "--reward.name NAME"
        )
    found = next((found for found in kinds.values() if found), {})
    return {sample: sum(values) / len(values) for sample, values in found.items()}
