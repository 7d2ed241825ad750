"""Files out of the store and into it, from the page: an export is one zip, an import is one file or zip, checked.

What is imported comes from an upload or from the folder `imports` beside the store, for files too large for a browser.
Images are checked as everywhere in the store: format, pixels, damage. May import: store, plugins, types.files.
"""

from __future__ import annotations

import inspect
import re
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, cast, get_args

from visfeedback.plugins import InputError, nearest
from visfeedback.store import Store, transfer
from visfeedback.store.transfer import Annotators
from visfeedback.types.records import now

FOLDERS = {"d3po", "folders", "parquet"}
"""formats that are a folder"""
SUFFIX = {"jsonl": ".jsonl", "pairs": ".jsonl", "hpd": ".json", "label_studio": ".json", "csv": ".csv"}
"""the others are .parquet"""
KEPT = 8
"""exports that stay; they can be made again"""
READ = {".png", ".jpg", ".jpeg", ".webp", ".json", ".jsonl", ".csv", ".parquet", ".txt"}
"""what is taken out of an uploaded zip"""
DATA = {".json", ".jsonl", ".csv", ".parquet"}
MOST_FILES, MOST_BYTES = 200_000, 64 << 30


def title(name: str) -> str:
    """A format in a few words: its name and the beginning of what it says of itself."""
    said = (inspect.getdoc(transfer.layout(name)) or "").partition("\n\n")[0]
    return f"{name}: {' '.join(re.split(r'[:;.(](?: |$)', said)[0].split())}"


def check(name: str) -> None:
    """InputError for whatever is not one of our formats; a dotted name would import anybody's module."""
    if name not in transfer.formats():
        raise InputError(f"no format {name!r:.40}{nearest(name, transfer.formats())}")


# out


def export(store: Store, folder: Path, name: str, annotators: str) -> tuple[Path, dict[str, Any]]:
    """A zip of the store in a format, with NAME.export.json inside; and what was written and dropped.

    InputError for an unknown format or way to name people.
    """
    if annotators not in get_args(Annotators):
        raise InputError(f"annotators {annotators!r:.40}; expected {', '.join(get_args(Annotators))}")
    check(name)
    folder.mkdir(parents=True, exist_ok=True)
    called = f"{name}-{now():%Y%m%d-%H%M%S-%f}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as making:
        inside = Path(making) / "files" / (name if name in FOLDERS else f"{name}{SUFFIX.get(name, '.parquet')}")
        inside.parent.mkdir()
        counts = transfer.export_file(store, inside, name, annotators=cast(Annotators, annotators))
        packed = _packed(inside.parent, Path(making) / "packed.zip")
        packed.replace(folder / f"{called}.zip")
    for old in sorted(folder.glob("*-*-*-*.zip"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    return folder / f"{called}.zip", counts


def _packed(folder: Path, file: Path) -> Path:
    """All files of a folder, uncompressed: images and Parquet are compressed already."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return file


# in


def waiting(folder: Path) -> list[str]:
    """Names in the folder `imports`."""
    return sorted(path.name for path in folder.glob("*") if not path.name.startswith(".") and not path.is_symlink())


def named(folder: Path, name: str) -> Path:
    """A file of the folder `imports`. InputError for whatever is not listed there."""
    if name not in waiting(folder):
        raise InputError(f"no {name!r:.70} in {folder}; put it there first")
    return folder / name


def bring_in(store: Store, path: Path, name: str) -> dict[str, Any]:
    """Add what a file, a zip or a folder holds; returns counts, also of what was dropped. Reading again adds nothing.

    InputError in one line for a format that does not fit, a damaged file, or a zip that is not what it seems.
    """
    check(name)
    if path.suffix.lower() != ".zip":
        return _read(store, path, name)
    with tempfile.TemporaryDirectory(prefix="visfeedback-import-") as place:
        return _read(store, _root(unpack(path, Path(place)), name), name)


def _read(store: Store, path: Path, name: str) -> dict[str, Any]:
    try:
        return transfer.import_file(store, path, name)
    except InputError as error:  # the folder that a zip was unpacked into means nothing to anybody
        raise InputError(str(error).replace(f"{path.parent}/", "")) from None


def unpack(file: Path, place: Path) -> Path:
    """Images and data files of a zip; names that lead elsewhere, links, and more than the limits are refused."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check(entries, file.name)
            for entry in entries:
                if PurePosixPath(entry.filename).suffix.lower() in READ:
                    _take_out(archive, entry, place)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"{file.name} is no zip that can be read: {error}") from None
    return place


def _check(entries: list[zipfile.ZipInfo], name: str) -> None:
    if len(entries) > MOST_FILES or sum(entry.file_size for entry in entries) > MOST_BYTES:
        raise InputError(f"{name} holds more than {MOST_FILES:,} files or {MOST_BYTES >> 30} GiB; import it in parts")
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{name} holds {entry.filename!r:.60}, which leads out of it; make the zip again")


def _take_out(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path) -> None:
    """One file; never more bytes than the zip says it has."""
    target = place / PurePosixPath(entry.filename.replace("\\", "/"))
    target.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with archive.open(entry) as source, target.open("wb") as file:
        while left > 0 and (piece := source.read(min(left, 1 << 20))):
            file.write(piece)
            left -= len(piece)


def _root(place: Path, name: str) -> Path:
    """Where the data is: past folders that hold nothing but a folder; the only data file where a format wants one."""
    inside = [path for path in place.iterdir() if path.name != "__MACOSX"]
    lone = inside[0] if len(inside) == 1 else None
    if lone is not None and lone.is_dir() and lone.name not in ("liked", "disliked"):
        return _root(lone, name)
    data = [path for path in inside if path.suffix.lower() in DATA and not path.name.endswith(".export.json")]
    if name in FOLDERS:
        own = place / name  # as `export` packs it
        return own if own.is_dir() else place
    if len(data) == 1:
        return data[0]
    if not inside:
        raise InputError("the zip holds no images and no data files")
    return place
