"""Prompts from wherever a user keeps them: a text, a file of lines or JSON lines, or a world such as shapes:heldout:64.

To add a kind of file: a function from path to prompts in ``READERS``, by its suffix. May import types.records; never
torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visfeedback import plugins
from visfeedback.plugins import InputError
from visfeedback.types.records import Prompt

FILE_LIKE = (".txt", ".jsonl", ".json", ".csv")
KEPT = ("negative", "category", "split")
"""columns of a JSON line, besides `prompt` or `text`, that a Prompt keeps; others are left alone"""


def load(source: str, limit: int | None = None, *, repeated: bool = False) -> list[Prompt]:
    """The prompts of ``source`` in order, each id once unless ``repeated``; the first ``limit`` of them.

    A .txt file has one prompt a line; a .jsonl file has objects with `prompt` or `text` and perhaps negative,
    category, split. Raises InputError for a missing or damaged file and when nothing is left.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: expected 1 or more prompts")
    found = list(_read(source))
    if not found:
        raise InputError(f"no prompts in {source!r}; expected at least one line of text")
    if not repeated:
        unique: dict[str, Prompt] = {}
        for prompt in found:
            unique.setdefault(prompt.id, prompt)
        found = list(unique.values())
    return found[:limit]


def _read(source: str) -> Iterator[Prompt]:
    reference = None if " " in source else plugins.split_reference(source)
    if reference is not None and hasattr(plugins.world(reference[0]), "prompts"):
        yield from plugins.world(reference[0]).prompts(reference[1])
    elif os.path.isfile(source):  # unlike Path.is_file this is False for a text too long to be a name
        yield from _read_file(Path(source))
    elif os.path.isdir(source):
        raise InputError(f"{source} is a folder; expected a text, a .txt or .jsonl file, or shapes:heldout")
    elif _is_file_like(source):
        raise InputError(f"no file {source}; expected a text, a .txt or .jsonl file, or shapes:heldout")
    elif _is_list(source):
        raise InputError(f"{source[:40]!r} is a list; expected texts one by one, 'a red dog' 'two cups', or a file")
    elif source.strip():
        yield Prompt.of(source.strip())


def _is_file_like(source: str) -> bool:
    """A name that somebody meant as a file: nobody draws ``prompts.txt`` or ``data/prompts``."""
    return source.lower().endswith(FILE_LIKE) or (" " not in source and any(c in source for c in "/\\"))


def _is_list(source: str) -> bool:
    """A JSON list that somebody gave where one text belongs; `[cat:dog:0.5]` is a text that some programs know."""
    try:
        return source.lstrip().startswith("[") and isinstance(json.loads(source), list)
    except (ValueError, RecursionError):
        return False


def _read_file(path: Path) -> Iterator[Prompt]:
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path}: expected a file of prompts ending in {' or '.join(READERS)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield READERS[path.suffix.lower()](path, number, line.strip())


def _text_line(path: Path, number: int, line: str) -> Prompt:
    return Prompt.of(line, source=str(path))


def _json_line(path: Path, number: int, line: str) -> Prompt:
    where = f"{path}, line {number}"
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f'{where}: not JSON ({error}); expected {{"prompt": "a red circle"}}') from None
    text = row.get("prompt", row.get("text")) if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InputError(f'{where}: expected an object with a text `prompt`, e.g. {{"prompt": "a red circle"}}')
    known = {key: row[key] for key in KEPT if row.get(key) is not None}
    if not isinstance(known.get("negative", ""), str):
        raise InputError(f"{where}: negative: expected a text")
    try:
        return Prompt.of(text.strip(), source=str(path), **known)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


READERS: dict[str, Callable[[Path, int, str], Prompt]] = {".txt": _text_line, ".jsonl": _json_line}
