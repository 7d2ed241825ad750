"""Where images come from: a folder, a list of samples, parquet files with the bytes inside, or the store.

A source lists its items in a fixed order without decoding anything, and hands out the bytes of one. Items that cannot
even be listed (no such file, a line that is no JSON) carry their error and go on as failures.
May import: types, store (in ``stored``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple, Protocol

from visfeedback.plugins import InputError
from visfeedback.scoring.decode import SUFFIXES, UNREAD
from visfeedback.scoring.settings import ScoreSettings

SAMPLES, METADATA = "samples.jsonl", "metadata.jsonl"
PATH_KEYS, PROMPT_KEYS = ("path", "file_name", "image"), ("prompt", "text", "caption")


class Item(NamedTuple):
    """One image of a source, not yet read."""

    image: str
    """its name in the table: a path relative to the source, a row, or a sample id"""
    prompt: str | None
    location: str
    """what ``fetch`` understands"""
    stamp: str = ""
    """changes when the content does: size and time of the file"""
    error: str = ""


Fetch = Callable[[], Any]
"""Gives the bytes (or an image in memory); called in a worker thread. Raises OSError or BadImage."""


class Source(Protocol):
    def items(self) -> Iterator[Item]: ...

    def fetch(self, location: str) -> Fetch:
        """Called in the order of the items, as far as possible: files with rows are read forwards."""
        ...


def open_source(images: str, settings: ScoreSettings, store: str = "") -> Source:
    """``images``: a folder, a samples.jsonl, a parquet file, a folder of parquet files, or the word ``store``.

    A folder with a samples.jsonl is that list. Raises InputError when there is nothing of the kind.
    """
    if images == "store":
        from visfeedback.scoring.stored import StoreSource

        if not store:
            raise InputError("--images store needs --store URL, for example sqlite:///prefs.db")
        return StoreSource(store)
    path = Path(images).expanduser()
    if path.is_dir():
        return _folder(path, settings)
    if not path.is_file():
        raise InputError(f"no {images}; expected a folder, samples.jsonl, a parquet file or the word store")
    if path.suffix == ".jsonl":
        return ListSource(path)
    if path.suffix == ".parquet":
        from visfeedback.scoring.parquets import ParquetSource

        return ParquetSource([path], settings)
    if path.suffix.lower() in SUFFIXES:
        return FileSource([path])
    raise InputError(f"{images}: expected a folder, a .jsonl list, a .parquet file, an image or the word store")


def _folder(path: Path, settings: ScoreSettings) -> Source:
    if (path / SAMPLES).is_file():
        return ListSource(path / SAMPLES)
    parquets = sorted(path.glob("*.parquet"))
    if parquets and next(walk(path), None) is None:
        from visfeedback.scoring.parquets import ParquetSource

        return ParquetSource(parquets, settings)
    return FolderSource(path)


class FileSource:
    """Files by name, for a handful of them."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def items(self) -> Iterator[Item]:
        for path in self._paths:
            yield listed(path, str(path), beside(path))

    def fetch(self, location: str) -> Fetch:
        return Path(location).read_bytes


class FolderSource:
    """Every image file below a folder, by name; hidden files and folders are left out.

    A prompt is the one that metadata.jsonl beside the image gives it (`file_name` with `prompt`, `text` or `caption`),
    else the text of NAME.txt. Files of other kinds are no images and are not looked at; pictures of kinds that are not
    read (HEIC, SVG, ...) are failures. A folder that is linked into itself is entered once.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def items(self) -> Iterator[Item]:
        open_lists: dict[Path, dict[str, str | None]] = {}  # folder -> what its metadata.jsonl still has to say
        yield from self._enter(self._root, open_lists)
        for path in walk(self._root):
            for folder in [f for f in open_lists if not path.is_relative_to(f)]:
                yield from self._leave(folder, open_lists.pop(folder))
            for folder in [f for f in path.parents if f not in open_lists and f.is_relative_to(self._root)]:
                yield from self._enter(folder, open_lists)
            said = [known.pop(path.relative_to(f).as_posix(), None) for f, known in open_lists.items()]
            prompt = next((prompt for prompt in said if prompt), None)
            yield listed(path, path.relative_to(self._root).as_posix(), prompt or beside(path))
        for folder, known in open_lists.items():
            yield from self._leave(folder, known)

    def _enter(self, folder: Path, open_lists: dict[Path, dict[str, str | None]]) -> Iterator[Item]:
        """Read the folder's metadata.jsonl; lines that cannot be read are items that failed."""
        known = open_lists.setdefault(folder, {})
        path = folder / METADATA
        for number, row in json_lines(path) if path.is_file() else ():
            if isinstance(row, str):
                shown = f"{path.relative_to(self._root).as_posix()} line {number}"
                yield Item(shown, None, "", error=f"{path}, line {number}: {row}")
            else:
                known[str(first(row, PATH_KEYS))] = text(first(row, PROMPT_KEYS))

    def _leave(self, folder: Path, known: dict[str, str | None]) -> Iterator[Item]:
        """What metadata.jsonl names but nobody met: a file that is missing, or one whose suffix is no image's."""
        for name, prompt in known.items():
            path = folder / name
            shown = Path(os.path.relpath(path, self._root)).as_posix()
            found = listed(path, shown, prompt)
            if found.error and found.location:
                found = found._replace(error=f"no file {path}; {folder / METADATA} lists it")
            yield found

    def fetch(self, location: str) -> Fetch:
        return Path(location).read_bytes


class ListSource:
    """Lines of JSON with `path` and `prompt`, as `visfeedback generate` writes them; paths are relative to the list."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def items(self) -> Iterator[Item]:
        for number, row in json_lines(self._path):
            if isinstance(row, str):
                yield Item(f"{self._path.name} line {number}", None, "", error=f"{self._path}, line {number}: {row}")
                continue
            name = str(first(row, PATH_KEYS))
            yield listed(self._path.parent / name, name, text(first(row, PROMPT_KEYS)))

    def fetch(self, location: str) -> Fetch:
        return Path(location).read_bytes


def walk(root: Path) -> Iterator[Path]:
    """Files with an image's suffix, folder by folder in the order of their names; links are followed, but not into a
    folder that they come from."""
    real = {str(root): frozenset({os.path.realpath(root)})}  # folder -> where it and its parents really are
    for folder, folders, files in os.walk(root, followlinks=True):
        above = real.pop(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
        folders[:] = [name for name in folders if inside[name] not in above]
        real |= {os.path.join(folder, name): above | {inside[name]} for name in folders}
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES | UNREAD:
                yield Path(folder, name)


def listed(path: Path, name: str, prompt: str | None) -> Item:
    """The item of a file; one that is not there, or whose name is no text, is an error of its own."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()  # two such names stay two
        return Item(shown, prompt, "", error="the file's name is not UTF-8; rename it")
    try:
        found = path.stat()
    except OSError as error:
        return Item(name, prompt, str(path), error=f"{path}: {error.strerror}")
    except ValueError:
        return Item(name, prompt, "", error="a file's name cannot hold a zero byte; correct the list")
    if not S_ISREG(found.st_mode):  # a pipe would keep its reader waiting for ever
        return Item(name, prompt, "", error=f"{path} is no file; remove it, or take it off the list")
    return Item(name, prompt, str(path), f"{found.st_size}-{found.st_mtime_ns}")


def beside(path: Path) -> str | None:
    """The prompt in NAME.txt beside NAME.png; None when there is none."""
    note = path.with_suffix(".txt")
    try:
        return text(note.read_text(encoding="utf-8-sig")) if note.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number and row, or what is wrong with the line. A torn last line of a killed writer is left out."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:  # some editors begin files with a byte-order mark
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if line.endswith("\n"):
                    yield number, f"not JSON ({error})"
                continue
            except RecursionError:
                yield number, "not JSON that anybody writes (brackets in brackets in brackets)"
                continue
            if not isinstance(row, dict) or first(row, PATH_KEYS) is None:
                yield number, "expected an object with `path` (or `file_name`) and `prompt`"
            else:
                yield number, row


def first(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the first key that is there."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def text(value: Any) -> str | None:
    """A prompt, or None when there is nothing to read. Halves of characters, which JSON can hold, become `?`."""
    return value.encode("utf-8", "replace").decode().strip() or None if isinstance(value, str) else None
