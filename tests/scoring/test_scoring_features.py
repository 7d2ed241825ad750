"""Embeddings kept by content: found again, shared, bounded, and never trusted blindly."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scoring_bench import pictures, png, run

from visfeedback.scoring import features
from visfeedback.scoring.features import Disk, InMemory, shrink

NAMES = [f"{n:064x}" for n in range(600)]


def opened(root: Path, reward, kib: float = 64) -> Disk:
    return Disk(root, reward, kib * 1024)


def test_rows_are_found_again_by_another_process(tmp_path: Path, toy) -> None:
    """600 rows in several files; what was never put is not there; what waits to be written is found by its owner."""
    rows = torch.randn(600, 7)
    first = opened(tmp_path, toy())
    for start in range(0, 600, 70):
        first.put(NAMES[start : start + 70], rows[start : start + 70])
    assert torch.equal(first.get(NAMES[-1]), rows[-1])
    first.flush()
    assert not first.has("f" * 64)
    again = opened(tmp_path, toy())
    assert all(again.has(name) for name in NAMES)
    assert not again.has("f" * 64)
    for n in (0, 599, 256, 3):
        assert torch.equal(again.get(NAMES[n]), rows[n])
    assert len(list(again.folder.glob("*.safetensors"))) >= 2
    assert not list(again.folder.glob(".*")), "no temporary file stays"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.float64])
def test_rows_keep_their_type_and_shape(tmp_path: Path, toy, dtype: torch.dtype) -> None:
    rows = (torch.rand(3, 2, 5) * 100).to(dtype)
    disk = opened(tmp_path, toy())
    disk.put(NAMES[:3], rows)
    disk.put(NAMES[3:4], (torch.rand(1, 4, 5) * 100).to(dtype))  # another length, as tokens of another aspect ratio
    disk.flush()
    again = opened(tmp_path, toy())
    assert torch.equal(again.get(NAMES[1]), rows[1])
    assert again.get(NAMES[1]).dtype == dtype
    assert again.get(NAMES[3]).shape == (4, 5)


def test_another_encoder_preprocessing_or_precision_finds_nothing(tmp_path: Path, toy) -> None:
    disk = opened(tmp_path, toy())
    disk.put(NAMES[:1], torch.ones(1, 3))
    disk.flush()
    assert opened(tmp_path, toy(name="other reward, same encoder")).has(NAMES[0])
    for other in (toy(encoder="x"), toy(preprocessing="x"), toy(dtype="bf16")):
        assert not opened(tmp_path, other).has(NAMES[0])


def test_large_rows_and_rows_that_are_not_finite_are_left_out(tmp_path: Path, toy) -> None:
    disk = opened(tmp_path, toy(), kib=1)
    disk.put(NAMES[:1], torch.ones(1, 257))  # 1028 bytes
    disk.put(NAMES[1:3], torch.tensor([[1.0, float("nan")], [1.0, 2.0]]))
    disk.flush()
    assert [disk.has(name) or opened(tmp_path, toy()).has(name) for name in NAMES[:3]] == [False, False, True]


def test_a_damaged_file_and_a_file_that_went_are_misses(tmp_path: Path, toy) -> None:
    disk = opened(tmp_path, toy())
    disk.put(NAMES[:2], torch.ones(2, 3))
    disk.flush()
    (file,) = disk.folder.glob("*.safetensors")
    found = opened(tmp_path, toy())
    assert found.has(NAMES[0])
    file.write_bytes(file.read_bytes()[:40])
    assert found.get(NAMES[0]) is None
    assert not opened(tmp_path, toy()).has(NAMES[0])
    file.unlink()
    assert opened(tmp_path, toy()).get(NAMES[0]) is None


def test_the_files_unused_for_longest_go_first(tmp_path: Path, toy) -> None:
    for n in range(3):
        disk = opened(tmp_path, toy())
        disk.put(NAMES[n : n + 1], torch.ones(1, 100))
        disk.flush()
    files = {name: opened(tmp_path, toy())._file(name) for name in NAMES[:3]}
    for age, name in enumerate((NAMES[1], NAMES[0], NAMES[2])):
        os.utime(files[name], (age, age))
    assert opened(tmp_path, toy()).get(NAMES[1]) is not None  # used just now
    shrink(tmp_path, 2.5 * files[NAMES[0]].stat().st_size)
    assert [opened(tmp_path, toy()).has(name) for name in NAMES[:3]] == [False, True, True]


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, toy) -> None:
    (tmp_path / "file").write_text("")
    disk = opened(tmp_path / "file", toy())
    disk.put(NAMES[:1], torch.ones(1, 3))
    with pytest.warns(UserWarning, match="--cache off"):
        disk.flush()
    disk.put(NAMES[1:2], torch.ones(1, 3))
    disk.flush()


def test_a_second_run_needs_no_encoder_and_no_decoding(tmp_path: Path, toy) -> None:
    """The same bytes with other prompts: scores come from the kept embeddings, the images are not even read."""
    data = [png(image) for image in pictures(9)]
    remember = partial(opened, tmp_path)
    run([toy()], data, [("a",)] * 9, remember=remember)
    reward = toy()
    found = run([reward], data, [("b",)] * 9, remember=remember)
    assert (reward.preprocessed, reward.batches) == (0, [])
    assert np.allclose(found.scores[0], run([toy()], data, [("b",)] * 9).scores[0], atol=1e-6)


def test_embeddings_that_go_between_looking_and_reading_are_made_again(tmp_path: Path, toy, monkeypatch) -> None:
    data = [png(image) for image in pictures(5)]
    remember = partial(opened, tmp_path)
    expected = run([toy()], data, [("a",)] * 5, remember=remember)
    monkeypatch.setattr(features, "_read", lambda path: {})  # another process has removed them
    reward = toy()
    found = run([reward], data, [("a",)] * 5, remember=remember)
    assert reward.preprocessed == 5
    assert np.allclose(found.scores[0], expected.scores[0], atol=1e-6)


def test_in_memory_the_least_recently_used_go(toy) -> None:
    """Room for two rows of 12 bytes."""
    kept = InMemory(24)
    kept.put(NAMES[:2], torch.ones(2, 3))
    kept.get(NAMES[0])
    kept.put(NAMES[2:3], torch.ones(1, 3))
    assert [kept.has(name) for name in NAMES[:3]] == [True, False, True]


def test_a_file_with_more_names_than_rows_is_as_if_it_were_not_there(toy, tmp_path: Path) -> None:
    disk = Disk(tmp_path, toy(), 1e6)
    disk.put(["a" * 64], torch.ones(1, 3))
    disk.flush()
    (path,) = tmp_path.rglob("*.safetensors")
    names = torch.frombuffer(bytearray(b"a" * 64 + b"b" * 64), dtype=torch.uint8).view(2, 64)
    save_file({"sha256": names, "features": torch.ones(1, 3)}, path)
    again = Disk(tmp_path, toy(), 1e6)
    assert again.get("a" * 64) is None
