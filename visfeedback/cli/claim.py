"""A result folder belongs to one set of settings: the same command goes on where it stopped, another one is refused.

No verb: helps the verbs that can be interrupted and repeated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.types.files import write_json

NAME = "settings.json"


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Make ``out`` and note ``settings`` (JSON values) there; a folder that has the same note is ours already.

    Raises InputError, naming the first difference, when the note is another one, and when a folder that is not empty
    has none: nothing of anybody's is overwritten.
    """
    note = out / NAME
    settings = json.loads(json.dumps(settings))  # tuples become lists, as they are in the note
    if note.is_file():
        _compare(out, _read(note), settings)
    elif out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):  # a killed writer's leftovers
        raise InputError(f"{out} is not empty and holds no results of this command; give another --out")
    else:
        write_json(note, settings)


def _read(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_text(encoding="utf-8")))
    except ValueError:
        raise InputError(f"{note} is damaged; remove {note.parent} or give another --out") from None


def _compare(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    from visfeedback.report.tables import first_difference

    if found := first_difference(before, now):
        key, old, new = found
        raise InputError(f"{out} was made with {key} = {old!r}, now it is {new!r}; give another --out")
