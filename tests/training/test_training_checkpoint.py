"""Checkpoints are whole or absent, and bring everything back."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from visfeedback.training import checkpoint


def snapshot(step: int) -> checkpoint.Snapshot:
    position = checkpoint.Position(step, 1.5, [{"loss": 0.5}])
    return checkpoint.Snapshot(position, {"a": torch.ones(2)}, {"optimizer": {"state": {}}}, {"k": 3})


def save(root: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(root, snapshot(step), 0, lambda: None, keep)


def test_a_checkpoint_comes_back(tmp_path):
    found = checkpoint.load(save(tmp_path, 3))
    assert found.position == snapshot(3).position and found.method == {"k": 3} and found.ema is None
    assert torch.equal(found.adapter["a"], torch.ones(2))


def test_the_newest_checkpoints_stay(tmp_path):
    for step in (2, 4, 10, 6):
        save(tmp_path, step)
    (tmp_path / ".step-99").mkdir()
    (tmp_path / "step-x").mkdir()
    assert checkpoint.steps(tmp_path) == [6, 10]


def test_random_states_come_back(tmp_path):
    import random

    folder = save(tmp_path, 1)
    first = (random.random(), numpy.random.rand(), torch.rand(1).item())
    checkpoint.restore_random_states(folder, 0)
    assert first == (random.random(), numpy.random.rand(), torch.rand(1).item())


def test_a_full_disk_leaves_no_checkpoint(tmp_path, monkeypatch):
    import errno

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 1)
    assert not list(tmp_path.iterdir())
