"""Folders of a program: copies that are whole or absent, and paths in them that bear being moved. May import: types."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path


def copy_whole(source: Path, target: Path) -> None:
    """``target`` becomes a copy of ``source``: made under a hidden name, then renamed. What stood there goes."""
    hidden, old = (target.with_name(f".{kind}-{target.name}") for kind in ("new", "old"))
    for left in (hidden, old):  # of a writer that was killed
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(source, hidden)
    with suppress(FileNotFoundError):
        target.rename(old)
    hidden.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def beside(file: Path, image: Path) -> str:
    """The image as a list in ``file`` names it: by a relative path when it lies in the list's folder, so that both may
    be moved together, else by an absolute one."""
    folder, image = file.parent.absolute(), image.absolute()
    return image.relative_to(folder).as_posix() if image.is_relative_to(folder) else str(image)
