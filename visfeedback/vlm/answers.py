"""Answers of endpoints kept on disk: one small JSON file per question, whole or absent.

The name is a hash of everything that was sent (model, address, images, text, settings) except the key.
May import: types.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visfeedback.types.files import write_atomic


class Answers:
    """A folder of answers; several processes may share it. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, key: str) -> dict[str, Any] | None:
        """What was answered; None when it was never asked or the file is damaged."""
        if self._folder is None:
            return None
        try:
            found = json.loads(self._path(self._folder, key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, key: str, answer: Mapping[str, Any]) -> None:
        if self._folder is not None:
            write_atomic(self._path(self._folder, key), json.dumps(answer, ensure_ascii=False))

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"


def key_of(url: str, payload: Mapping[str, Any]) -> str:
    """sha256 hex of an address and what is sent to it."""
    return hashlib.sha256(json.dumps([url, payload], sort_keys=True).encode()).hexdigest()
