"""What was refused and who agreed to what: two append-only files beside the store.

No address and no password is written: an address is a keyed hash, the same within one collection and none outside.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from visfeedback.app.throttle import Buckets
from visfeedback.types.records import now

REFUSALS, CONSENTS = "refusals.jsonl", "consents.jsonl"
LONGEST = 300  # characters of a text that came from outside
log = logging.getLogger("visfeedback.app")


class Journal:
    """May be shared by threads. ``secret`` is the key of the hashes."""

    def __init__(self, folder: Path, secret: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._key = folder, secret.encode()
        self._lock = threading.Lock()
        self._room = Buckets(5, 200)  # a flood shall not fill the disk
        self._left_out = 0
        self._agreed = {(row["judge"], row["text"]) for row in self._read(CONSENTS)}

    def refused(self, what: str, *, judge: str = "", address: str = "", path: str = "", detail: str = "") -> None:
        """``what``: a word or two of ours; the rest came from outside and is cut short."""
        if not self._room.take("refusals"):
            self._left_out += 1
            return
        row: dict[str, Any] = {
            "at": now().isoformat(),
            "what": what,
            "judge": judge[:LONGEST],
            "from": self._hashed(address),
        }
        row |= {"path": path[:LONGEST], "detail": detail[:LONGEST]}
        if self._left_out:
            row["left_out"], self._left_out = self._left_out, 0
        log.info("refused: %s", row)
        self._append(REFUSALS, row)

    def agree(self, judge: str, text: str) -> None:
        digest = _digest(text)
        if (judge, digest) not in self._agreed:
            self._append(CONSENTS, {"at": now().isoformat(), "judge": judge, "text": digest})
            self._agreed.add((judge, digest))

    def has_agreed(self, judge: str, text: str) -> bool:
        """Whether the judge agreed to this very text, now or before a restart."""
        return not text or (judge, _digest(text)) in self._agreed

    def _hashed(self, address: str) -> str:
        return hmac.new(self._key, address.encode(), hashlib.sha256).hexdigest()[:12] if address else ""

    def _append(self, name: str, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=True) + "\n"
        with self._lock, (self._folder / name).open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = "\n" + line  # after the half line of a server that was killed
            file.write(line.encode())

    def _read(self, name: str) -> list[dict[str, Any]]:
        """Whole lines; what a killed server left half written is left out."""
        path = self._folder / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found: list[dict[str, Any]] = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
