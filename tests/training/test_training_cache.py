"""Tables: rows computed once, in shards."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from visfeedback.plugins import InputError
from visfeedback.training.cache import Live, Stored, fill
from visfeedback.types.protocols import silent


def number(key: str) -> float:
    return float("".join(c for c in key if c.isdigit()))


def test_rows_come_back_in_the_order_of_their_keys(tmp_path, monkeypatch):
    from visfeedback.training import cache

    monkeypatch.setattr(cache, "SHARD", 3)
    keys = [f"k{i}" for i in range(8)]
    sizes: list[int] = []

    def compute(some):
        sizes.append(len(some))
        return {"x": torch.tensor([number(k) for k in some]), "y": torch.ones(len(some), 2)}

    fill(tmp_path, keys, compute, 2, (silent, ""))  # 3 rows a file, cut at whole chunks: 2
    assert sizes == [2, 2, 2, 2] and len(list(tmp_path.iterdir())) == 4
    table = Stored(tmp_path, keys, 2)
    assert table.rows(["k7", "k0", "k7", "k3"])["x"].tolist() == [7, 0, 7, 3]
    assert table.rows(["k1"])["y"].shape == (1, 2)


def test_a_filled_table_is_not_computed_again_and_a_lost_shard_is(tmp_path, monkeypatch):
    from visfeedback.training import cache

    monkeypatch.setattr(cache, "SHARD", 2)
    keys = list("abcde")
    calls: list[list[str]] = []  # a chunk of 2 each

    def compute(some):
        calls.append(list(some))
        return {"x": torch.zeros(len(some))}

    fill(tmp_path, keys, compute, 2, (silent, ""))
    assert calls == [["a", "b"], ["c", "d"], ["e"]]
    calls.clear()
    sorted(tmp_path.iterdir())[1].unlink()
    fill(tmp_path, keys, compute, 2, (silent, ""))
    assert calls == [["c", "d"]]


def test_processes_share_the_shards(tmp_path, monkeypatch):
    """Process r takes shards r, r + R, ...: together they are what one process writes, byte for byte."""
    from visfeedback.training import cache

    monkeypatch.setattr(cache, "SHARD", 2)
    keys = list("abcdefg")

    def compute(some):
        return {"x": torch.tensor([float(ord(k)) for k in some])}

    fill(tmp_path / "one", keys, compute, 2, (silent, ""))
    for rank in (1, 0):
        fill(tmp_path / "two", keys, compute, 2, (silent, ""), rank, 2)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 4


def test_live_rows_compute_each_key_once():
    counted = Counter[str]()

    def compute(some):
        counted.update(some)
        return {"x": torch.tensor([number(k) for k in some])}

    assert Live(compute).rows(["k2", "k1", "k2"])["x"].tolist() == [2, 1, 2]
    assert counted == {"k2": 1, "k1": 1}


def test_a_full_disk_leaves_no_half_shard(tmp_path, monkeypatch):
    import errno
    import os

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        fill(tmp_path, ["a"], lambda some: {"x": torch.zeros(len(some))}, 1, (silent, ""))
    assert not list(tmp_path.iterdir())


def test_a_row_does_not_depend_on_what_is_added_later(tmp_path):
    """Last bits depend on the shape of the batch. 5 keys, then 8: with padding every call is of 3 keys, so rows 0 to 4
    are what they were, and so they are in a table of 8 made at once."""

    def compute(some):
        return {"x": torch.tensor([number(k) + len(some) / 1000 for k in some])}

    few, many = [f"k{i}" for i in range(5)], [f"k{i}" for i in range(8)]
    for folder, steps in (("grown", (few, many)), ("whole", (many,))):
        for keys in steps:
            fill(tmp_path / folder, keys, compute, 3, (silent, ""), pad=True)
    rows = [Stored(tmp_path / folder, many, 3).rows(many)["x"].tolist() for folder in ("grown", "whole")]
    assert rows[0] == rows[1] == pytest.approx([i + 0.003 for i in range(8)])


def test_the_size_is_said_before_and_must_fit(tmp_path, monkeypatch):
    """1000 rows of 2 x 4 bytes in fp32 are 7.81 KiB; with 7 KiB free nothing is written."""
    import shutil
    from contextlib import contextmanager
    from types import SimpleNamespace

    said: list[str] = []

    @contextmanager
    def progress(description, total):
        said.append(description)
        yield lambda count: None

    keys, free = [f"k{i}" for i in range(1000)], 7 * 1024
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    def compute(some):
        return {"x": torch.zeros(len(some), 2)}

    folder = tmp_path / "run/cache/moments-abc"
    with pytest.raises(InputError, match=r"needs 7.81 KiB .* 7 KiB are free; .*--engine.cache.no-moments") as caught:
        fill(folder, keys, compute, 100, (progress, "encoding images"))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists() and said == []
    free = 8 * 1024
    fill(folder, keys, compute, 100, (progress, "encoding images"))
    assert said == ["encoding images (7.81 KiB)"]
