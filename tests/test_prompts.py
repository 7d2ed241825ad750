"""Prompts from every source, and one line for what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visfeedback import prompts
from visfeedback.plugins import InputError
from visfeedback.types.records import Prompt, text_id


def lines(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_a_text_is_one_prompt() -> None:
    [prompt] = prompts.load(" a red circle, either/or blue ")
    assert prompt == Prompt(id=text_id("a red circle, either/or blue", ""), text="a red circle, either/or blue")


def test_a_long_text_is_no_file_name() -> None:
    text = "a very " * 1000 + "red circle"
    assert prompts.load(text)[0].text == text


def test_a_colon_in_a_text_is_no_world() -> None:
    """`store` is a room of the package, `shapes` a world; with a blank both are just words."""
    assert prompts.load("store:front")[0].text == "store:front"
    assert prompts.load("shapes: red ones")[0].text == "shapes: red ones"


def test_text_files_have_a_prompt_a_line(tmp_path: Path) -> None:
    """Blank lines go, repeated prompts count once, the first place wins; a byte order mark is no letter."""
    source = lines(tmp_path / "p.txt", "\ufeffa cat", "", "  a dog ", "a cat")
    assert [p.text for p in prompts.load(source)] == ["a cat", "a dog"]
    assert [p.text for p in prompts.load(source, limit=1)] == ["a cat"]
    assert prompts.load(source)[0].source == source


def test_json_lines_keep_what_a_prompt_knows(tmp_path: Path) -> None:
    """`prompt` or `text`; negative is part of the id, so the same text twice is two prompts; other columns go."""
    source = lines(
        tmp_path / "p.jsonl",
        {"prompt": "a cat", "category": "colors", "split": "train", "aesthetic": 3},
        {"text": "a cat", "negative": "blurry"},
    )
    first, second = prompts.load(source)
    assert (first.category, first.split, first.negative) == ("colors", "train", "")
    assert (second.text, second.negative, second.id) == ("a cat", "blurry", text_id("a cat", "blurry"))


def test_a_world_has_prompts() -> None:
    made = prompts.load("shapes:heldout:14")
    assert len(made) == 14
    assert all(p.split == "heldout" and p.category for p in made)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n \n", "no prompts"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', r"p.jsonl, line 2: expected an object"),
        ("p.jsonl", '{"prompt": \n', "line 1: not JSON"),
        ("p.jsonl", '["a"]\n', "line 1: expected an object"),
        ("p.jsonl", '{"prompt": "a", "split": "tset"}\n', "line 1: split"),
        ("p.jsonl", '{"prompt": "a", "negative": 1}\n', "line 1: negative"),
        ("p.csv", "prompt\na\n", r"ending in .txt or .jsonl"),
    ],
)
def test_damaged_files_name_the_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        prompts.load(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_bytes_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        prompts.load(str(tmp_path / "p.txt"))


@pytest.mark.parametrize("source", ["missing.txt", "my prompts.jsonl", "data/prompts", "p.JSON", "p.csv"])
def test_a_missing_file_is_no_prompt(source: str) -> None:
    with pytest.raises(InputError, match="no file"):
        prompts.load(source)


def test_empty_and_impossible_sources(tmp_path: Path) -> None:
    wrong = {"": "no prompts", "  ": "no prompts", str(tmp_path): "is a folder", '["a dog", "a cat"]': "one by one"}
    for source, message in wrong.items():
        with pytest.raises(InputError, match=message):
            prompts.load(source)
    assert prompts.load("[" * 100_000)[0].text
    with pytest.raises(InputError, match="limit 0"):
        prompts.load("a cat", limit=0)
    with pytest.raises(InputError, match="shapes"):
        prompts.load("shapes:nothing")
