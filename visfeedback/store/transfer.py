"""Moving a store into files of other tools and back: one place for the command and for the app."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from visfeedback.plugins import InputError, load, names, nearest
from visfeedback.store.core import Store
from visfeedback.store.formats._people import People, keep, of_store, pseudonyms
from visfeedback.types.files import write_json
from visfeedback.types.records import now

Annotators = Literal["auto", "keep", "pseudonyms"]


def formats() -> list[str]:
    """The names of all formats, sorted."""
    return names("store.formats")


def layout(name: str) -> ModuleType:
    """The module of a format. InputError naming the nearest when there is none."""
    if "." not in name and name not in formats():
        raise InputError(f"no format {name!r}{nearest(name, formats())}")
    return load("store.formats", name)


def import_file(store: Store, path: Path, name: str) -> dict[str, Any]:
    """Add what a file or folder holds; reading it again adds nothing. Returns counts, also of what was dropped."""
    if not path.exists():
        raise InputError(f"no file {path} to import")
    return layout(name).read(path, store)


def export_file(
    store: Store, path: Path, name: str, *, annotators: Annotators = "auto", salt: str = ""
) -> dict[str, Any]:
    """Write a file or folder, and beside it ``NAME.export.json``: what was written, what was dropped and why.

    ``annotators``: `keep` writes names as they are, `pseudonyms` never; `auto` keeps them in the layouts that are for
    moving a whole store (jsonl, parquet, pairs) and hides them in all others. ``salt``: the key of the pseudonyms, for
    the same ones from several stores; empty takes the store's own secret.
    """
    people: People | None = None
    if annotators == "keep":
        people = keep
    elif salt:
        people = pseudonyms(salt)
    elif annotators == "pseudonyms":
        people = of_store(store)
    counts = layout(name).write(store, path, people)
    about = {"format": name, "written_at": now().isoformat(), "annotators": annotators} | counts
    write_json(path.with_name(f"{path.name}.export.json"), about)
    return counts
