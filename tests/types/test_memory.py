"""The most memory that a process has used, in MiB on every system."""

from __future__ import annotations

import resource
import sys
from types import SimpleNamespace

import pytest

from visfeedback.types import memory


def test_it_grows_with_what_is_held() -> None:
    before = memory.host_peak_mib()
    held = bytearray(before * 2**20 + 2**26)  # more than ever before, every page touched
    held[::4096] = b"x" * len(held[::4096])
    assert memory.host_peak_mib() >= before + 64


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_macos_counts_bytes_and_others_kib(monkeypatch: pytest.MonkeyPatch, tmp_path, system: str, unit: int) -> None:
    """300 MiB without /proc: 300 * 2^20 on macOS, 300 * 2^10 elsewhere."""
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", system)
    usage = SimpleNamespace(ru_maxrss=300 * 2**20 // unit)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert memory.host_peak_mib() == 300


def test_a_system_without_the_module(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Windows has no `resource`."""
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.host_peak_mib() == 0
