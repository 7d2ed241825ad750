"""How people judge, and files out and in: what the Data tab does, without a browser."""

from __future__ import annotations

import csv
import io
import json
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import app_server
import pytest
from PIL import Image

from visfeedback import store
from visfeedback.app import data_moves, data_view
from visfeedback.app.context import Context
from visfeedback.app.tabs import data
from visfeedback.plugins import InputError
from visfeedback.store import transfer
from visfeedback.types.records import Choice, Feedback

NASTY = "=HYPERLINK('http://x')"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """Six pairs judged by two people: five equal answers, one different; a like; one answer taken back."""
    url = f"sqlite:///{tmp_path}/p.db"
    samples = app_server.fill(url, tmp_path / "images", prompts=6, each=2)
    with app_server.context(url) as made:
        pairs = list(zip(samples[::2], samples[1::2], strict=True))
        for judge in ("ada", "bob"):
            for number, (a, b) in enumerate(pairs):
                choice: Choice = "a" if number % 2 == 0 or (judge == "bob" and number == 5) else "b"
                made.store.add_feedback([Feedback(
                    id=f"{judge}{number}", judge=f"human:{judge}", prompt_id=a.prompt_id, sample_ids=(a.id, b.id),
                    choice=choice, values=(1.0, 0.0) if choice == "a" else (0.0, 1.0), sides=(0, 1), seconds=2.0,
                    note=NASTY,
                )])  # fmt: skip
        like = Feedback(id="like", kind="like", judge="human:ada", prompt_id=samples[0].prompt_id,
                        sample_ids=(samples[0].id,), values=(1.0,))  # fmt: skip
        made.store.add_feedback([like, like.model_copy(update={"id": "gone"})])
        made.store.retract("gone", "human:ada")
        yield made


# what is shown


def test_the_numbers_are_those_of_the_answers(context: Context) -> None:
    """12 answers to pairs, 7 of them for the left image; 5 of 6 pairs judged alike."""
    found = data_view.overview(context.store)
    assert found.kinds == {"pair": 12, "like": 1}
    assert found.people["left"]["share"] == 7 / 12
    assert (found.with_ties["items"], found.with_ties["percent"]) == (6, 5 / 6)
    told = data_view.shown(found)
    assert "12 pairs, 1 like<" in told
    assert "Krippendorff" in told and "human:ada" in told and "58%" in told and "2.00" in told


def test_nothing_said_is_said(tmp_path: Path) -> None:
    with app_server.context(f"sqlite:///{tmp_path}/p.db") as made:
        assert "Nothing has been judged yet" in data.look(made)[0]
        assert data.look(made)[1] == ""


def test_one_judge_alone_has_no_agreement(context: Context) -> None:
    for record in list(context.store.feedback(judge="human:bob")):
        context.store.retract(record.id, "human:bob")
    told = data.look(context)[0]
    assert "agreement is unknown" in told and "Krippendorff" not in told


def test_the_newest_answers_come_first_and_what_was_taken_back_does_not(context: Context) -> None:
    assert [record.id for record in data_view.recent(context.store, 3)] == ["like", "bob5", "bob4"]


def test_pictures_stand_as_they_stood_on_the_screen(context: Context) -> None:
    """The image at side 0 comes first although it is the second of the record; the chosen one is marked."""
    [old] = [record for record in context.store.feedback() if record.id == "ada0"]
    context.store.add_feedback([old.model_copy(update={"id": "new", "sides": (1, 0)})])
    [record] = data_view.recent(context.store, 1)
    card = data_view._card(record, context.store.samples_of(record.sample_ids))
    assert [picture.mark for picture in card.pictures] == ["", "chosen"]


def test_places_are_counted_as_on_the_screen(context: Context) -> None:
    """Ranks are kept from 0, and the screen says `place 1`; of a best-of-N only the best is marked."""
    [old] = [record for record in context.store.feedback() if record.id == "ada0"]
    ranked = {"kind": "ranking", "choice": None, "values": (1.0, 0.0), "sides": (0, 1)}
    context.store.add_feedback([old.model_copy(update={"id": "r", **ranked})])
    context.store.add_feedback([old.model_copy(update={"id": "s", **ranked, "kind": "best"})])
    samples = context.store.samples_of(old.sample_ids)
    marks = [
        [one.mark for one in data_view._card(record, samples).pictures] for record in data_view.recent(context.store, 2)
    ]
    assert marks == [["chosen", ""], ["place 2", "place 1"]]


def test_texts_from_outside_are_text(context: Context) -> None:
    told = data_view.gallery(context.store)
    assert "<b>more</b>" not in told and "&lt;b&gt;more&lt;/b&gt;" in told
    assert "model-that-must-not-leak" not in told


def test_pictures_are_blurred_where_the_collection_is(context: Context) -> None:
    assert "vf-blur" in data_view.gallery(context.store, blur=True)
    assert "vf-blur" not in data_view.gallery(context.store)


# out


@pytest.mark.parametrize("name", transfer.formats())
def test_every_format_is_one_zip_that_says_what_was_dropped(context: Context, name: str, tmp_path: Path) -> None:
    """What is in the zip is read back by the same format, through the same page, and nobody's name is in it."""
    file, told = data.export(context, name, "pseudonyms")
    assert file.parent == context.folder / "exports" and "left out" in told
    with zipfile.ZipFile(file) as archive:
        [about] = [entry for entry in archive.namelist() if entry.endswith(".export.json")]
        counts = json.loads(archive.read(about))
        assert counts["format"] == name and "dropped" in counts
        assert not any(b"human:ada" in archive.read(entry) for entry in archive.namelist())
    with store.open(f"sqlite:///{tmp_path}/other.db") as other:
        back = data_moves.bring_in(other, file, name)
        fits = "Nothing in the store fits" not in told
        assert fits or name == "imagereward"  # which has ranks and ratings only
        assert back["feedback"] == other.feedback_count() and bool(back["feedback"]) == fits
        assert data_moves.bring_in(other, file, name)["feedback"] == 0
    assert not list(file.parent.glob(".making*"))


def test_tables_are_safe_in_spreadsheets(context: Context) -> None:
    file, _ = data.export(context, "csv", "pseudonyms")
    with zipfile.ZipFile(file) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("csv.csv").decode())))
    cells = [cell for row in rows for cell in row.values()]
    assert f"'{NASTY}" in cells
    assert not any(cell.startswith(("=", "+", "@", "\t")) for cell in cells)


def test_names_are_kept_only_when_asked_for(context: Context) -> None:
    for annotators, there in (("keep", True), ("pseudonyms", False)):
        file, _ = data.export(context, "jsonl", annotators)
        assert (b"human:ada" in zipfile.ZipFile(file).read("jsonl.jsonl")) is there


def test_old_exports_go(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_moves, "KEPT", 2)
    made = [data.export(context, "csv", "pseudonyms")[0] for _ in range(4)]
    assert [file.exists() for file in made] == [False, False, True, True]


@pytest.mark.parametrize(("name", "annotators"), [("../x", "keep"), ("no", "keep"), ("csv", "everybody")])
def test_wrong_choices_are_one_line(context: Context, name: str, annotators: str) -> None:
    with pytest.raises(InputError) as error:
        data.export(context, name, annotators)
    assert "\n" not in str(error.value)


# in


def packed(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def picture(colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, kind)
    return buffer.getvalue()


def test_folders_of_likes_come_in_as_a_zip(context: Context, tmp_path: Path) -> None:
    """A damaged image and one of another format are left out and counted; a folder around it all does not matter."""
    listed = b"".join(
        json.dumps({"file_name": f"liked/{n}", "prompt": "a hat"}).encode() + b"\n" for n in ("a.png", "b.png")
    )
    file = packed(tmp_path / "x.zip", **{
        "set/liked/a.png": picture("red"), "set/liked/b.png": b"no image", "set/metadata.jsonl": listed,
        "set/disliked/c.png": picture("blue"), "set/disliked/c.txt": b"a hat", "set/readme.exe": b"MZ",
    })  # fmt: skip
    before = context.store.feedback_count()
    told = data.bring_in(context, file, "folders")
    assert "Read x.zip: 2 sample, 2 feedback; left out: 1 damaged image" in told
    assert context.store.feedback_count() == before + 2


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png"]
)
def test_a_zip_that_leads_out_is_refused(context: Context, tmp_path: Path, name: str) -> None:
    file = packed(tmp_path / "x.zip", **{"liked/a.png": picture("red"), name: picture("blue")})
    with pytest.raises(InputError, match="leads out of it"):
        data.bring_in(context, file, "folders")
    assert not list(tmp_path.rglob("evil*"))


def test_links_in_a_zip_are_refused(context: Context, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("liked/a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="leads out of it"):
        data.bring_in(context, tmp_path / "x.zip", "folders")


def test_a_zip_that_grows_beyond_the_limit_is_refused(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_moves, "MOST_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("liked/a.png", b"\0" * 10**6)
    with pytest.raises(InputError, match="holds more than"):
        data.bring_in(context, tmp_path / "x.zip", "folders")


@pytest.mark.parametrize(
    ("content", "name"), [(b"PK\3\4 no zip", "x.zip"), (b"", "x.zip"), (b"{", "x.jsonl"), (b"\0" * 99, "x.parquet")]
)
def test_damaged_files_are_one_line_without_our_folders(
    context: Context, tmp_path: Path, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        data.bring_in(context, tmp_path / name, "pickapic" if name.endswith("parquet") else "jsonl")
    assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("name", ["../p.db", "/etc/passwd", ".hidden", "", "nothing"])
def test_only_what_lies_in_imports_is_read(context: Context, name: str) -> None:
    folder = data.imports(context)
    folder.mkdir(parents=True)
    (folder / ".hidden").touch()
    with pytest.raises(InputError, match="put it there first"):
        data_moves.named(folder, name)


def test_large_files_come_from_the_folder_imports(context: Context, tmp_path: Path) -> None:
    file, _ = data.export(context, "jsonl", "keep")
    folder = data.imports(context)
    folder.mkdir(parents=True)
    file.rename(folder / "big.zip")
    (folder / "link").symlink_to("/etc")
    assert data_moves.waiting(folder) == ["big.zip"]
    assert "0 feedback" in data.bring_in(context, data_moves.named(folder, "big.zip"), "jsonl")
