"""Pairs files: the same rows from three file types, and one line for whatever is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from visfeedback.plugins import InputError
from visfeedback.preferences.files import COLUMNS, PairRow, read_pairs

ROWS = [
    {"prompt": "a red, \"round\" circle", "image_a": "i/1.png", "image_b": "i/2.png", "label": label}
    for label in ("a", "b", "tie", "0.25")
]  # fmt: skip


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "i" / name).write_bytes(b"")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pa.Table.from_pylist(rows, None if rows else pa.schema([("prompt", pa.string())])), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_three_file_types_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    """Paths are relative to the file, other columns are ignored, P(a) of a, b, tie is 1, 0, .5."""
    rows = read_pairs(write(tmp_path / f"pairs{suffix}", [row | {"more": 1} for row in ROWS]))
    one, two = tmp_path / "i" / "1.png", tmp_path / "i" / "2.png"
    assert rows == [PairRow(str(ROWS[0]["prompt"]), one, two, p) for p in (1.0, 0.0, 0.5, 0.25)]


def test_numbers_in_json_and_parquet(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".parquet"):
        path = write(tmp_path / f"n{suffix}", [ROWS[0] | {"label": p} for p in (0.0, 1.0, 0.5)])
        assert [row.p_a for row in read_pairs(path)] == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named_with_its_row(tmp_path: Path, suffix: str, column: str) -> None:
    rows = [{k: v for k, v in ROWS[0].items() if k != column}]
    with pytest.raises(InputError, match=rf"row 1: no '{column}'; expected the columns prompt, image_a"):
        read_pairs(write(tmp_path / f"x{suffix}", rows))


@pytest.mark.parametrize("label", ["c", "1.5", -0.5, True, "nan", [1]])
def test_a_wrong_label_is_named_with_its_row(tmp_path: Path, label: object) -> None:
    with pytest.raises(InputError, match=r"row 2: label .* expected a, b, tie or P") as caught:
        read_pairs(write(tmp_path / "x.jsonl", [ROWS[0], ROWS[0] | {"label": label}]))
    assert "\n" not in str(caught.value)


def test_a_missing_image_is_named_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 1: image_b: no file .*/i/3\.png"):
        read_pairs(write(tmp_path / "x.csv", [ROWS[0] | {"image_b": "i/3.png"}]))
    with pytest.raises(InputError, match="row 1: image_a is int; expected a path"):
        read_pairs(write(tmp_path / "x.jsonl", [ROWS[0] | {"image_a": 3}]))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_an_empty_file(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match="has no rows"):
        read_pairs(write(tmp_path / f"x{suffix}", []))


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*nowhere"):
        read_pairs(tmp_path / "nowhere.jsonl")
    for name, line in (("x.txt", "expected .jsonl, .csv or .parquet"), ("x.parquet", "cannot be read as parquet")):
        (tmp_path / name).write_text("hello")
        with pytest.raises(InputError, match=line):
            read_pairs(tmp_path / name)
    (tmp_path / "x.jsonl").write_text(json.dumps(ROWS[0]) + "\n{broken\n")
    with pytest.raises(InputError, match="row 2: not a JSON object"):
        read_pairs(tmp_path / "x.jsonl")


def test_a_mark_in_front_of_the_first_line_is_no_part_of_it(tmp_path: Path):
    """Windows programs begin UTF-8 text with U+FEFF."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROWS[0]), encoding="utf-8-sig")
    assert [row.prompt for row in read_pairs(path)] == [ROWS[0]["prompt"]]


def test_a_cell_that_csv_cannot_hold_is_one_line(tmp_path: Path):
    """Python's csv reads cells of up to 131,072 characters unless told otherwise: a pasted picture is more."""
    path = write(tmp_path / "pairs.csv", [ROWS[0] | {"prompt": "x" * 140_000}])
    before = csv.field_size_limit(131_072)  # of the whole process
    try:
        with pytest.raises(InputError, match=r"pairs\.csv cannot be read as csv: field larger than field limit"):
            list(read_pairs(path))
    finally:
        csv.field_size_limit(before)
