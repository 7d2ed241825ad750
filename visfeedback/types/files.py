"""Files that are whole or absent: atomic writes, and JSON lines that survive a torn last line.

Standard library and pydantic only.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from visfeedback.plugins import InputError

Model = TypeVar("Model", bound=BaseModel)


def write_atomic(path: Path, content: bytes | str) -> Path:
    """Write under a temporary name, fsync, rename: a reader sees the old file or the new one, never half of one."""
    path = Path(path)
    with _replacing(path) as handle, os.fdopen(handle, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    return path


@contextmanager
def open_atomic(path: Path) -> Iterator[TextIO]:
    """A text file to write piece by piece; it appears under its name, whole and synced, when the block ends well."""
    with _replacing(Path(path)) as handle, os.fdopen(handle, "w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _replacing(path: Path) -> Iterator[int]:
    """The descriptor of a new file that takes the name ``path`` when the block ends well and goes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _new_file(path)
    try:
        yield handle
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _new_file(path: Path) -> tuple[int, Path]:
    """A new hidden file beside ``path``, as open to others as the umask says. The system applies the umask itself:
    asking for it would mean changing it, and another thread's file would be born without it."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with contextlib.suppress(FileExistsError):
            return os.open(temporary, flags, 0o666), temporary


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable. Windows opens no folders; there it is left to the system."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> Path:
    """Atomic, indented, keys in the order given, newline at the end."""
    return write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Append rows, one JSON object a line, and fsync. A torn last line of a killed writer is cut off first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r.model_dump_json() if isinstance(r, BaseModel) else json.dumps(r, ensure_ascii=False) for r in rows]
    if not lines:
        return
    cut_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def cut_torn_line(path: Path) -> None:
    """Drop what stands after the last newline: it is the half line of a writer that was killed."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def read_jsonl(path: Path, model: type[Model]) -> Iterator[Model]:
    """Rows of a JSON lines file as records; blank lines are skipped, and so is a torn last line (no newline, no JSON).

    Read as bytes, for a line may be torn inside a letter. Raises InputError naming file and line for anything else
    that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                yield model.model_validate_json(line)
            except ValidationError as error:
                if not line.endswith(b"\n"):
                    return
                first = error.errors()[0]
                where = ".".join(str(p) for p in first["loc"]) or "the line"
                raise InputError(f"{path}, line {number}: {where}: {first['msg']}") from None


def file_sha256(path: Path) -> str:
    """sha256 hex of a file's bytes, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def small_files_id(folder: Path, names: Iterable[str]) -> str:
    """8 hex digits over names and contents of those files of a folder that are there; empty when none is."""
    found = [(name, file_sha256(folder / name)) for name in sorted(names) if (folder / name).is_file()]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:8] if found else ""


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_escape(cell: str) -> str:
    """A CSV cell that no spreadsheet runs as a formula: `=1+1` -> `'=1+1`.

    Also before apostrophes that precede such a text, so that `csv_unescape` is exact.
    """
    return f"'{cell}" if _formula(cell) else cell


def csv_unescape(cell: str) -> str:
    """What `csv_escape` was given."""
    return cell[1:] if cell.startswith("'") and _formula(cell) else cell


def _formula(cell: str) -> bool:
    """Blanks before it do not make it harmless."""
    return cell.lstrip("'").lstrip(" ").startswith(FORMULA)
