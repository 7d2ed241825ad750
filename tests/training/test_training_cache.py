"""Tables: rows computed once, in shards."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

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

    fill(tmp_path, keys, compute, 2, (silent, ""))
    assert sizes == [2, 1, 2, 1, 2] and len(list(tmp_path.iterdir())) == 3
    table = Stored(tmp_path, keys)
    assert table.rows(["k7", "k0", "k7", "k3"])["x"].tolist() == [7, 0, 7, 3]
    assert table.rows(["k1"])["y"].shape == (1, 2)


def test_a_filled_table_is_not_computed_again_and_a_lost_shard_is(tmp_path, monkeypatch):
    from visfeedback.training import cache

    monkeypatch.setattr(cache, "SHARD", 2)
    keys = list("abcde")
    calls: list[list[str]] = []

    def compute(some):
        calls.append(list(some))
        return {"x": torch.zeros(len(some))}

    fill(tmp_path, keys, compute, 9, (silent, ""))
    assert calls == [["a", "b"], ["c", "d"], ["e"]]
    calls.clear()
    sorted(tmp_path.iterdir())[1].unlink()
    fill(tmp_path, keys, compute, 9, (silent, ""))
    assert calls == [["c", "d"]]


def test_processes_share_the_shards(tmp_path, monkeypatch):
    """Process r takes shards r, r + R, ...: together they are what one process writes, byte for byte."""
    from visfeedback.training import cache

    monkeypatch.setattr(cache, "SHARD", 2)
    keys = list("abcdefg")

    def compute(some):
        return {"x": torch.tensor([float(ord(k)) for k in some])}

    fill(tmp_path / "one", keys, compute, 9, (silent, ""))
    for rank in (1, 0):
        fill(tmp_path / "two", keys, compute, 9, (silent, ""), rank, 2)
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
