"""Embeddings of images kept by content: a second run over the same images needs no image encoder and no decoding.

On disk: ``CACHE/<key>/<name>.safetensors``, each with some hundred rows of one shape and the sha256 (hex) of their
images; the key is a digest of encoder (weights included), preprocessing and dtype. Files are written once, whole, and
never changed, so any number of processes may share a folder; when it grows too large the files unused for longest go.
In memory: the same interface with a limit in bytes, for several calls over the same images.
Left out: embeddings that are larger than a limit, or not finite. May import: types.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from visfeedback.types.files import write_atomic
from visfeedback.types.protocols import Reward

ROWS = 256
"""Embeddings in one file."""
OPEN = 4
"""Files whose rows are held in memory while they are read one after another."""


class Features(Protocol):
    """Embeddings by the sha256 of an image; ``get`` may be called from threads."""

    def has(self, sha256: str) -> bool: ...

    def get(self, sha256: str) -> Tensor | None: ...

    def put(self, sha256s: Sequence[str], features: Tensor) -> None: ...

    def flush(self) -> None: ...


def default_folder() -> Path:
    """`visfeedback/features` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visfeedback" / "features"


class Disk:
    """The rows of one key."""

    def __init__(self, root: Path, reward: Reward, max_bytes: float) -> None:
        about = {"encoder": reward.encoder, "preprocessing": reward.preprocessing, "dtype": reward.origin.dtype}
        self._about = {"visfeedback": json.dumps(about)}
        self.folder = root / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
        self._max_bytes = max_bytes
        self._waiting: OrderedDict[str, Tensor] = OrderedDict()
        self._open: OrderedDict[Path, dict[bytes, Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        self._files: list[Path] = []
        self._names, self._where = self._index()

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted digests and the file of each: 68 bytes an image, whatever the size of its row."""
        names: list[np.ndarray] = []
        where: list[np.ndarray] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            with contextlib.suppress(SafetensorError, OSError, KeyError), safe_open(path, "np") as file:
                digests = file.get_tensor("sha256")
                names.append(np.ascontiguousarray(digests).view("S64").reshape(-1))
                where.append(np.full(len(digests), len(self._files), np.int32))
                self._files.append(path)
        if not names:
            return np.empty(0, "S64"), np.empty(0, np.int32)
        joined = np.concatenate(names)
        order = np.argsort(joined, kind="stable")
        return joined[order], np.concatenate(where)[order]

    def _file(self, sha256: str) -> Path | None:
        place = int(np.searchsorted(self._names, sha256.encode()))
        found = place < len(self._names) and self._names[place] == sha256.encode()
        return self._files[self._where[place]] if found else None

    def has(self, sha256: str) -> bool:
        return sha256 in self._waiting or self._file(sha256) is not None

    def get(self, sha256: str) -> Tensor | None:
        """The row, or None when it is not there, or not any more."""
        with self._lock:
            if sha256 in self._waiting:
                return self._waiting[sha256]
            path = self._file(sha256)
            return self._rows(path).get(sha256.encode()) if path else None

    def _rows(self, path: Path) -> dict[bytes, Tensor]:
        if path not in self._open:
            self._open[path] = _read(path)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return self._open[path]

    def put(self, sha256s: Sequence[str], features: Tensor) -> None:
        """Rows that are small enough and finite; they are on disk after the next ``flush``."""
        if not len(features) or features[0].nbytes > self._max_bytes:
            return
        finite = (
            features.isfinite().flatten(1).all(1).tolist() if features.is_floating_point() else [True] * len(features)
        )
        rows = features.detach().cpu()
        with self._lock:
            for sha256, row, good in zip(sha256s, rows, finite, strict=True):
                if good and not self.has(sha256):
                    self._waiting[sha256] = row.clone()
        if len(self._waiting) >= ROWS:
            self.flush()

    def flush(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, OrderedDict()
        shapes: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for sha256, row in waiting.items():
            shapes.setdefault(tuple(row.shape), {})[sha256] = row
        for rows in shapes.values():
            self._write(rows)

    def _write(self, rows: dict[str, Tensor]) -> None:
        digests = torch.frombuffer(bytearray("".join(rows).encode()), dtype=torch.uint8).view(-1, 64)
        content = save({"sha256": digests, "features": torch.stack(list(rows.values()))}, self._about)
        try:
            write_atomic(self.folder / f"{uuid.uuid4().hex}.safetensors", content)
        except OSError as error:
            warnings.warn(
                f"embeddings cannot be kept in {self.folder.parent} ({error.strerror}); name another folder with "
                "--cache, or --cache off", stacklevel=2,
            )  # fmt: skip
            self._max_bytes = -1.0  # once is enough


def _read(path: Path) -> dict[bytes, Tensor]:
    """All rows of a file; empty when it is gone or damaged."""
    try:
        with safe_open(path, "pt") as file:
            names, rows = file.get_tensor("sha256"), file.get_tensor("features")
        os.utime(path)  # the files unused for longest go first
        return {name.numpy().tobytes(): row for name, row in zip(names, rows, strict=True)}
    except (SafetensorError, OSError, KeyError, ValueError):
        return {}


def shrink(root: Path, max_bytes: float) -> None:
    """Remove the files of the cache that were not used for longest, until it is small enough."""
    found: list[tuple[float, int, Path]] = []
    for path in root.glob("*/*.safetensors"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


class InMemory:
    """Rows of one group of rewards in memory, on the device they were made on; the least recently used go first."""

    def __init__(self, max_bytes: float) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def has(self, sha256: str) -> bool:
        return sha256 in self._rows

    def get(self, sha256: str) -> Tensor | None:
        with self._lock:
            if sha256 in self._rows:
                self._rows.move_to_end(sha256)
            return self._rows.get(sha256)

    def put(self, sha256s: Sequence[str], features: Tensor) -> None:
        with self._lock:
            for sha256, row in zip(sha256s, features.detach(), strict=True):
                if sha256 not in self._rows:
                    self._rows[sha256] = row.clone()
                    self._bytes += row.nbytes
            while self._bytes > self._max_bytes and self._rows:
                self._bytes -= self._rows.popitem(last=False)[1].nbytes

    def flush(self) -> None:
        pass
