"""Paths on disk: written and read back the same, and clear words when they are missing or damaged."""

from __future__ import annotations

import pytest
import torch

from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import Walk
from visfeedback.sampling.trajectories import read_trajectory, trajectory_file, write_trajectory


def test_what_was_written_is_read(tmp_path):
    tensors = {"latents": torch.randn(4, 2, 3, 3).half(), "t": torch.rand(4), "log_prob": torch.randn(3)}
    write_trajectory(tmp_path, "abc", tensors, Walk(3, 7.5, 0.3, (0.5, 0.9)))
    found, walk = read_trajectory(tmp_path, "abc")
    assert walk == Walk(3, 7.5, 0.3, (0.5, 0.9)) and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert trajectory_file(tmp_path, "abc") == tmp_path / "trajectories/abc.safetensors"


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no .*x\.safetensors: the image's denoising path was not kept"):
        read_trajectory(tmp_path, "x")
    file = write_trajectory(tmp_path, "x", {"t": torch.rand(2)}, Walk(1))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match=r"x\.safetensors is damaged") as caught:
        read_trajectory(tmp_path, "x")
    assert "\n" not in str(caught.value)
