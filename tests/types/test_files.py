"""Files are whole or absent, and a torn last line never hides the lines before it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from visfeedback.plugins import InputError
from visfeedback.types.files import append_jsonl, open_atomic, read_jsonl, sync_folder, write_atomic, write_json
from visfeedback.types.records import Prompt


def test_write_atomic_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomic(tmp_path / "f", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_written_files_obey_the_umask(tmp_path: Path) -> None:
    """mkstemp makes 0600 files; ours are as open as any other file: 0666 without the umask's bits.

    Nobody asks for the umask, because asking is setting it: a file that another thread made then would be 0666.
    """
    old, asked = os.umask(0o027), os.umask
    os.umask = lambda mask: pytest.fail("the umask was changed")  # type: ignore[assignment]
    try:
        path = write_atomic(tmp_path / "f", "x")
        with open_atomic(tmp_path / "g") as file:
            file.write("x")
    finally:
        os.umask = asked
        os.umask(old)
    assert path.stat().st_mode & 0o777 == (tmp_path / "g").stat().st_mode & 0o777 == 0o640


def test_write_json_keeps_order_and_letters(tmp_path: Path) -> None:
    assert write_json(tmp_path / "j", {"b": 1, "a": "ä"}).read_text() == '{\n  "b": 1,\n  "a": "ä"\n}\n'


def test_jsonl_round_trip(tmp_path: Path) -> None:
    """Law: write -> read = identity, in several appends."""
    prompts = [Prompt.of(f"a red square, {i} \u2028 line") for i in range(5)]
    append_jsonl(tmp_path / "p.jsonl", prompts[:2])
    append_jsonl(tmp_path / "p.jsonl", [])
    append_jsonl(tmp_path / "p.jsonl", prompts[2:])
    assert list(read_jsonl(tmp_path / "p.jsonl", Prompt)) == prompts


def test_a_torn_last_line_is_skipped_and_then_cut(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    first, second = Prompt.of("one"), Prompt.of("two")
    append_jsonl(path, [first])
    with path.open("a") as file:
        file.write(second.model_dump_json()[:10])
    assert list(read_jsonl(path, Prompt)) == [first]
    append_jsonl(path, [second])
    assert list(read_jsonl(path, Prompt)) == [first, second]


def test_a_line_torn_inside_a_letter_is_skipped(tmp_path: Path) -> None:
    """`é` is two bytes; killed between them the file is no UTF-8 any more. In the middle of a file it is an error."""
    path = tmp_path / "p.jsonl"
    whole = Prompt.of("café").model_dump_json().encode() + b"\n"
    torn = whole[: whole.index(b"\xc3") + 1]
    path.write_bytes(whole + torn)
    assert [p.text for p in read_jsonl(path, Prompt)] == ["café"]
    path.write_bytes(torn + b"\n" + whole)
    with pytest.raises(InputError, match=r"p.jsonl, line 1: the line: Invalid JSON") as caught:
        list(read_jsonl(path, Prompt))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_letter(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + Prompt.of("a").model_dump_json().encode() + b"\r\n")
    assert list(read_jsonl(path, Prompt)) == [Prompt.of("a")]


def test_a_system_that_opens_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows: `os.open` of a folder is a PermissionError."""
    monkeypatch.setattr(os, "open", lambda *a, **k: pytest.fail("opened the folder"))
    monkeypatch.setattr(os, "name", "nt")
    sync_folder(tmp_path)


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'\n{Prompt.of("one").model_dump_json()}\n{{"id": "x", "text": 3}}\n')
    with pytest.raises(InputError, match=r"p.jsonl, line 3: text: "):
        list(read_jsonl(path, Prompt))
    with pytest.raises(InputError, match="no file"):
        list(read_jsonl(tmp_path / "none.jsonl", Prompt))
