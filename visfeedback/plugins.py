"""Find things by name: a method, a backbone, a judge, a reward, or a world of prompts and models.

What lives here: the one rule "the file name is the name" and errors that name the nearest choice.
To add one: put a file into the room; nothing is registered anywhere.
May import: the standard library only, so every room may import this one.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

PACKAGE = __name__.rpartition(".")[0]

try:
    VERSION = version(PACKAGE)
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0.0.0"


class InputError(ValueError):
    """The user's input is wrong: one line saying what was wrong, what was expected, what to type."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A half sentence that teaches: ``; did you mean 'dpo'? known: d3po, dpo``, or ``; known: d3po, dpo``."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} known: {', '.join(known)}" if known else ""


def names(room: str) -> list[str]:
    """The modules of a room, sorted; underscore names are private."""
    package = importlib.import_module(f"{PACKAGE}.{room}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def load(room: str, name: str) -> ModuleType:
    """``load("methods", "kto")`` is ``visfeedback.methods.kto``; a dotted name is other people's module.

    Raises InputError when there is no such module, naming the nearest one.
    """
    dotted = name if "." in name else f"{PACKAGE}.{room}.{name}"
    try:
        found = find_spec(dotted) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise InputError(f"no {name!r} in {room}{nearest(name, names(room))}")
    return importlib.import_module(dotted)


def split_reference(reference: str) -> tuple[str, str] | None:
    """``"shapes:sd"`` -> ``("shapes", "sd")`` when the part before the colon is a world of this package, else None.

    A world is a sub-package with the functions ``model_folder(part)`` and ``prompts(part)``.
    """
    name, colon, part = reference.partition(":")
    if not colon or not name.isidentifier() or name.startswith("_") or find_spec(f"{PACKAGE}.{name}") is None:
        return None
    return (name, part) if hasattr(world(name), "model_folder") else None  # rooms are sub-packages, too


def world(name: str) -> ModuleType:
    """The module of a world, for example ``visfeedback.shapes``."""
    return importlib.import_module(f"{PACKAGE}.{name}")
