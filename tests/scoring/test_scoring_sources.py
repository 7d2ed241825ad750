"""Folders, lists, parquet files and the store as lists of images with prompts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from visfeedback import store
from visfeedback.plugins import InputError
from visfeedback.scoring.decode import BadImage
from visfeedback.scoring.settings import ScoreSettings
from visfeedback.scoring.sources import open_source
from visfeedback.types.records import Prompt, Sample, image_id

SETTINGS = ScoreSettings()


def write(path: Path, colour: str = "red", size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def lines(path: Path, *rows: dict | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def listed(images: Path | str, **more) -> list[tuple[str, str | None]]:
    return [(item.image, item.prompt) for item in open_source(str(images), SETTINGS, **more).items() if not item.error]


def failed(images: Path | str) -> dict[str, str]:
    return {item.image: item.error for item in open_source(str(images), SETTINGS).items() if item.error}


def test_a_folder_is_walked_in_the_order_of_names(tmp_path: Path) -> None:
    """Files first, then folders; hidden ones and files that are no images by their suffix are left alone."""
    for name in ("b.png", "a.JPG", "sub/c.webp", ".hidden/d.png", ".e.png"):
        write(tmp_path / name)
    for name in ("readme.txt", "data.json", "model.safetensors"):
        (tmp_path / name).write_text("x")
    assert [image for image, _ in listed(tmp_path)] == ["a.JPG", "b.png", "sub/c.webp"]
    assert failed(tmp_path) == {}


def test_prompts_beside_the_images(tmp_path: Path) -> None:
    """metadata.jsonl of the folder, or of a folder above, before NAME.txt; a blank note is no prompt."""
    for name in ("a.png", "b.png", "c.png", "sub/d.png", "sub/e.png"):
        write(tmp_path / name)
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "prompt": "from the list"},
          {"file_name": "sub/d.png", "text": "from above"})  # fmt: skip
    lines(tmp_path / "sub" / "metadata.jsonl", {"file_name": "e.png", "caption": "from its own"})
    (tmp_path / "a.txt").write_text("from the note")
    (tmp_path / "b.txt").write_text("  from the note\n")
    (tmp_path / "c.txt").write_text(" \n")
    assert dict(listed(tmp_path)) == {
        "a.png": "from the list", "b.png": "from the note", "c.png": None, "sub/d.png": "from above",
        "sub/e.png": "from its own",
    }  # fmt: skip


def test_what_a_metadata_list_gets_wrong(tmp_path: Path) -> None:
    """A missing file and a line that cannot be read are failures of their own; an unusual suffix is trusted."""
    write(tmp_path / "a.png")
    (tmp_path / "odd.data").write_bytes((tmp_path / "a.png").read_bytes())
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "prompt": "x"}, {"file_name": "gone.png", "prompt": "y"},
          "not json", {"prompt": "no name"}, {"file_name": "odd.data", "prompt": "z"}, '{"torn": ')  # fmt: skip
    assert listed(tmp_path) == [("a.png", "x"), ("odd.data", "z")]
    wrong = failed(tmp_path)
    assert set(wrong) == {"gone.png", "metadata.jsonl line 3", "metadata.jsonl line 4", "metadata.jsonl line 6"}
    assert "no file" in wrong["gone.png"]
    assert "not JSON" in wrong["metadata.jsonl line 3"]


def test_samples_jsonl_as_a_file_or_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "images" / "p-0.png")
    text = Prompt.of("a red circle")
    sample = Sample(
        id=image_id(8, 8, b""), prompt_id=text.id, prompt=text.text, path="images/p-0.png", width=8, height=8
    )
    rows = [sample.model_dump(), sample.model_dump() | {"path": "images/gone.png"}]
    lines(tmp_path / "samples.jsonl", *rows)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"torn": ')  # a writer that was killed
    for source in (tmp_path, tmp_path / "samples.jsonl"):
        assert listed(source) == [("images/p-0.png", "a red circle")]
        assert "No such file" in failed(source)["images/gone.png"]


def test_one_image_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red square")
    assert listed(path) == [(str(path), "a red square")]


def rows_of(path: Path, **columns) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=7)
    return path


def test_parquet_with_bytes_or_structs(tmp_path: Path) -> None:
    """Row by row, forwards and back, whatever the row groups; names from the struct, a column, or the row."""
    data = [write(tmp_path / f"{n}.png", size=n + 1).read_bytes() for n in range(20)]
    structs = [{"bytes": d, "path": f"name-{n}.png"} for n, d in enumerate(data)]
    a = rows_of(tmp_path / "a.parquet", image=structs, prompt=[f"p{n}" for n in range(20)])
    b = rows_of(tmp_path / "b.parquet", image=data, file_name=[f"f{n}" for n in range(20)])
    c = rows_of(tmp_path / "c.parquet", image=data)
    assert listed(a)[3] == ("name-3.png", "p3")
    assert listed(b)[3] == ("f3", None)
    assert listed(c)[3] == ("c.parquet row 3", None)
    source = open_source(str(a), SETTINGS)
    items = list(source.items())
    for n in (0, 1, 19, 3, 18, 2):
        assert source.fetch(items[n].location)() == data[n]


def test_parquet_rows_without_bytes(tmp_path: Path) -> None:
    """A path is read from beside the file; a row with neither is a bad image."""
    picture = write(tmp_path / "x.png")
    rows = pa.array([{"bytes": None, "path": "x.png"}, {"bytes": None, "path": None}],
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    source = open_source(str(rows_of(tmp_path / "a.parquet", image=rows)), SETTINGS)
    first, second = source.items()
    assert source.fetch(first.location)() == picture.read_bytes()
    with pytest.raises(BadImage, match="no image"):
        source.fetch(second.location)()


def test_a_folder_of_parquet_files_is_read_in_order(tmp_path: Path) -> None:
    data = write(tmp_path / "elsewhere" / "x.png").read_bytes()
    folder = tmp_path / "data"
    folder.mkdir()
    for n in (1, 0):
        rows_of(folder / f"train-{n}.parquet", image=[data] * 3, prompt=[f"{n}-{k}" for k in range(3)])
    assert [prompt for _, prompt in listed(folder)] == [f"{n}-{k}" for n in range(2) for k in range(3)]


def test_the_store(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    image = Image.open(path)
    name = image_id(8, 8, image.convert("RGB").tobytes())
    text = Prompt.of("a red square")
    url = f"sqlite:///{tmp_path}/prefs.db"
    with store.open(url) as opened:
        opened.add_samples(
            [Sample(id=name, prompt_id=text.id, prompt=text.text, path="a.png", width=8, height=8)], tmp_path
        )
    assert listed("store", store=url) == [(name, "a red square")]
    source = open_source("store", SETTINGS, url)
    (item,) = source.items()
    assert source.fetch(item.location)() == path.read_bytes()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: root / "nowhere", "expected a folder, samples.jsonl, a parquet file or the word store"),
        (lambda root: "store", "needs --store URL"),
        (lambda root: root / "note.txt", "expected a folder, a .jsonl list"),
        (lambda root: root / "torn.parquet", "cannot be read as parquet"),
        (lambda root: rows_of(root / "x.parquet", picture=[b"1"]), "no column 'image'; it has picture"),
        (lambda root: rows_of(root / "y.parquet", image=["a.png"]), "expected bytes, or a struct"),
    ],
)
def test_what_is_no_source(tmp_path: Path, make, said: str) -> None:
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError) as error:
        open_source(str(make(tmp_path)), SETTINGS)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_change_of_a_file_changes_its_stamp(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (before,) = open_source(str(tmp_path), SETTINGS).items()
    write(tmp_path / "a.png", size=9)
    (after,) = open_source(str(tmp_path), SETTINGS).items()
    assert before.stamp != after.stamp


@pytest.mark.parametrize("name", ["samples.jsonl", "metadata.jsonl"])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"path": "a\\u0000.png", "prompt": "x"}', "zero byte"),
        ('{"path": "\\ud800.png", "prompt": "x"}', "not UTF-8"),
        ('{"path": "' + "x" * 5000 + '.png", "prompt": "x"}', ""),
        ("[" * 100_000, "not JSON"),
        ('{"path": 5, "prompt": 7}', ""),
    ],
)
def test_a_line_that_nobody_should_write_fails_alone(tmp_path: Path, name: str, row: str, said: str) -> None:
    write(tmp_path / "a.png")
    lines(tmp_path / name, row, {"path": "a.png", "prompt": "x"})
    assert listed(tmp_path) == [("a.png", "x")]
    ((image, error),) = failed(tmp_path).items()
    assert said in error
    assert "\n" not in error
    (image + error).encode()  # what cannot be written into a table stops the run


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    for name in ("samples.jsonl", "metadata.jsonl"):
        (tmp_path / name).write_text('{"path": "a.png", "prompt": "x"}\n', encoding="utf-8-sig")
        assert listed(tmp_path) == [("a.png", "x")]
        assert failed(tmp_path) == {}
        (tmp_path / name).unlink()


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    """A folder linked twice is two folders; one that is linked into itself, or to its parent, is entered once."""
    write(tmp_path / "images/a.png")
    write(tmp_path / "elsewhere/b.png")
    for name, target in (("circle", "images"), ("up", "."), ("one", "elsewhere"), ("two", "elsewhere")):
        (tmp_path / "images" / name).symlink_to(tmp_path / target)
    assert [image for image, _ in listed(tmp_path / "images")] == [
        "a.png", "one/b.png", "two/b.png", "up/elsewhere/b.png",
    ]  # fmt: skip


def test_names_that_are_no_text_stay_apart(tmp_path: Path) -> None:
    for name in (b"\xfe.png", b"\xff.png"):
        write(tmp_path / os.fsdecode(name))
    assert len(failed(tmp_path)) == 2


def test_pictures_of_kinds_that_are_not_read_are_not_left_out_in_silence(tmp_path: Path) -> None:
    for name in ("a.heic", "b.SVG", "c.png"):
        write(tmp_path / "c.png").rename(tmp_path / name)
    assert [image for image, _ in listed(tmp_path)] == ["a.heic", "b.SVG", "c.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_or_folder_that_is_called_like_an_image_fails_alone(tmp_path: Path) -> None:
    """Reading a pipe would wait for ever for somebody who writes into it."""
    write(tmp_path / "images/a.png")
    os.mkfifo(tmp_path / "images/b.png")
    (tmp_path / "c.png").mkdir()
    lines(tmp_path / "samples.jsonl", {"path": "c.png", "prompt": "x"})
    assert "is no file" in failed(tmp_path / "images")["b.png"]
    assert "is no file" in failed(tmp_path)["c.png"]
