"""Tables: write -> read = identity in each format, and files that are something else."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest

from visfeedback.plugins import InputError
from visfeedback.scoring import tables

ROWS = [
    {"image": "a.png", "image_sha256": "0" * 64, "prompt": 'one "quoted", with\ncomma', "reward": "toy",
     "score": 0.1 + 0.2, "model": "m", "revision": "", "checkpoint_sha256": "", "preprocessing": "p", "dtype": "fp32"},
    {"image": "b \N{SNOWMAN}.png", "image_sha256": "1" * 64, "prompt": None, "reward": "toy",
     "score": -1e-30, "model": "m", "revision": "r", "checkpoint_sha256": "c", "preprocessing": "p", "dtype": "bf16"},
]  # fmt: skip


@pytest.mark.parametrize("suffix", list(tables.FORMATS))
def test_write_then_read_is_identity(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"scores{suffix}"
    with tables.writing(out, tmp_path / "temporary") as writer:
        writer.write(pa.Table.from_pylist(ROWS[:1], tables.SCHEMA))
        writer.write(pa.Table.from_pylist(ROWS[1:], tables.SCHEMA))
    found = pa.concat_tables(tables.read(out))
    assert found.to_pylist() == ROWS
    assert found.schema.names == list(tables.COLUMNS)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", list(tables.FORMATS))
def test_an_empty_table_has_its_columns(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"scores{suffix}"
    with tables.writing(out, tmp_path / "temporary"):
        pass
    assert sum(len(table) for table in tables.read(out)) == 0


def test_the_table_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    out.write_text("before")
    with pytest.raises(RuntimeError), tables.writing(out, tmp_path / "temporary") as writer:
        writer.write(pa.Table.from_pylist(ROWS, tables.SCHEMA))
        raise RuntimeError("killed")
    assert out.read_text() == "before"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "image,score\na.png,1\n"), ("a.csv", ",".join(tables.COLUMNS) + "\n" + "x," * 9 + "x\n"),
        ("a.jsonl", "not json\n"), ("a.jsonl", json.dumps({"image": 3}) + "\n"), ("a.jsonl", "[1]\n"),
        ("a.parquet", "PAR1"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="give another --out") as error:
        list(tables.read(tmp_path / name))
    assert "\n" not in str(error.value)


def test_names_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.txt; expected \.parquet, \.csv or \.jsonl"):
        tables.check(tmp_path / "scores.txt")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        tables.check(tmp_path / "folder.csv")


def test_no_text_is_a_formula_of_a_spreadsheet(tmp_path: Path) -> None:
    """What a list of prompts from somewhere says is written so that no program runs it, and read as it was."""
    texts = ['=HYPERLINK("http://evil")', "@x", "-1+1", "'=quoted", "plain", "  =late"]
    rows = [{**dict.fromkeys(tables.COLUMNS, "x"), "score": -0.5, "image": text, "prompt": text} for text in texts]
    with tables.writing(tmp_path / "o.csv", tmp_path / "part") as writer:
        writer.write(pa.Table.from_pylist(rows, tables.SCHEMA))
    (found,) = tables.read(tmp_path / "o.csv")
    assert found.to_pylist() == rows
    with (tmp_path / "o.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.lstrip().startswith(("=", "@")) or cell.startswith("-1")]
    assert cells.count("-0.5") == len(texts)
