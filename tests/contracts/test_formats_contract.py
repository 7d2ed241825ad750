"""Every format: write -> read is the identity on what it carries; wrong files are one line; others' are read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image, PngImagePlugin
from pyarrow import parquet

from visfeedback import plugins, store
from visfeedback.plugins import InputError
from visfeedback.store.formats._people import keep, pseudonyms
from visfeedback.types.records import PAIR_VALUES, Feedback, Region, Sample, image_id, text_id

FORMATS = plugins.names("store.formats")
SUFFIX = {"jsonl": ".jsonl", "pairs": ".jsonl", "hpd": ".json", "label_studio": ".json", "csv": ".csv"}
FOLDERS = {"parquet", "d3po", "folders"}
WHEN = datetime(2026, 3, 4, 5, 6, 7, 89000, tzinfo=UTC)


def png(red: int, green: int = 0, **text: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (red, green, 3)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def a_sample(prompt: str, red: int, model: str) -> tuple[Sample, bytes]:
    data = png(red)
    name = image_id(8, 6, Image.open(io.BytesIO(data)).tobytes())
    where = {"prompt_id": text_id(prompt, ""), "prompt": prompt}
    return Sample(id=name, width=8, height=6, model=model, path=f"{red}.png", **where), data


MARK = Region(x=0.5, y=0.25, label="artifact")
PROMPTS = ("=a cat, with \u2028 and \U0001f436", '\'=HYPERLINK("x")', "plain")


@pytest.fixture
def source(tmp_path: Path) -> store.Store:
    """Three prompts, three images each, and every kind of feedback, with everything that a record can say."""
    folder = tmp_path / "source"
    folder.mkdir()
    opened = store.open(f"sqlite:///{folder}/s.db")
    groups = []
    for p, prompt in enumerate(PROMPTS):
        made = [a_sample(prompt, 20 * p + k, f"model-{k}") for k in range(3)]
        for sample, data in made:
            (folder / sample.path).write_bytes(data)
        opened.add_samples([sample for sample, _ in made], folder)
        groups.append([sample for sample, _ in made])
    opened.add_feedback(record for p, group in enumerate(groups) for record in everything(group, p))
    return opened


def everything(group: list[Sample], p: int) -> list[Feedback]:
    a, b, c = (sample.id for sample in group)
    common = {"judge": "human:zzyx", "prompt_id": group[0].prompt_id, "created_at": WHEN, "seconds": 1.5}
    found = [
        Feedback(
            id=f"{choice}{p}", sample_ids=(b, a), choice=choice, values=PAIR_VALUES[choice], sides=(1, 0), note="=1+1",
            extra={"colour": "red", "n": [1, None]}, **common,
        )
        for choice in ("a", "b", "tie", "both_bad", "skip", "flag")
    ]  # fmt: skip
    found += [
        Feedback(id=f"gold{p}", sample_ids=(a, c), choice="a", values=(1, 0), gold=True, **common),
        Feedback(id=f"soft{p}", sample_ids=(a, c), choice="a", values=(0.75, 0.25), **common | {"judge": "vlm:x"}),
        Feedback(id=f"rank{p}", kind="ranking", sample_ids=(a, b, c), values=(1, 0, 1), **common),
        Feedback(id=f"best{p}", kind="best", sample_ids=(a, b, c), values=(0, 0, 1), **common),
        Feedback(id=f"like{p}", kind="like", sample_ids=(a,), values=(1,), **common),
        Feedback(id=f"dislike{p}", kind="like", sample_ids=(b,), values=(-1,), **common),
        Feedback(id=f"rate{p}", kind="rating", criterion="style", sample_ids=(a,), values=(4,), **common),
        Feedback(id=f"region{p}", kind="region", sample_ids=(a,), regions=(MARK,), **common),
        Feedback(id=f"words{p}", kind="words", sample_ids=(a,), words=(0, 2), shown_at=WHEN, order=3, **common),
        Feedback(id=f"text{p}", kind="text", sample_ids=(a,), **common | {"note": "nice"}),
        Feedback(id=f"undone{p}", sample_ids=(a, b), choice="a", values=(1, 0), **common),
        Feedback(id=f"undo{p}", kind="tombstone", judge="human:zzyx", retracts=f"undone{p}", created_at=WHEN),
    ]  # fmt: skip
    return found


def path_of(name: str, folder: Path) -> Path:
    return folder / ("out" if name in FOLDERS else f"out{SUFFIX.get(name, '.parquet')}")


def carried(records: list[Feedback], carries: Any) -> list[dict[str, Any]]:
    """The part of the records that a format says it carries."""
    whole = "tombstone" in carries.kinds
    gone = {record.retracts for record in records}
    found = []
    for record in records:
        fits = record.kind in carries.kinds and (whole or record.id not in gone)
        fits = fits and (record.kind != "pair" or record.choice in carries.choices)
        fits = fits and (not carries.one_image or len(record.sample_ids) == 1)
        if fits and (not record.gold or "gold" in carries.feedback):
            found.append({name: getattr(record, name) for name in carries.feedback})
    return found


def everything_in(opened: store.Store) -> list[Feedback]:
    return list(opened.feedback(include_retracted=True))


@pytest.mark.parametrize("name", FORMATS)
def test_write_then_read_is_the_identity_on_what_is_carried(name: str, source: store.Store, tmp_path: Path) -> None:
    """Records in order, samples, images bit for bit; every other record is counted as dropped; twice adds nothing."""
    layout = plugins.load("store.formats", name)
    carries = layout.CARRIES
    path = path_of(name, tmp_path)
    counts = layout.write(source, path, keep)
    with store.open(f"sqlite:///{tmp_path}/copy.db") as copy:
        layout.read(path, copy)
        before, after = everything_in(source), everything_in(copy)
        expected = carried(before, carries)
        assert carried(after, carries.model_copy(update={"kinds": tuple({r.kind for r in after})})) == expected
        assert len(after) == len(expected) > 0
        standing = list(source.feedback())
        lost = 0 if "tombstone" in carries.kinds else len(standing) - len(expected)
        assert sum(counts["dropped"].values()) == lost, counts
        assert_samples(source, copy, carries)
        again = layout.read(path, copy)
        assert (again["sample"], again["feedback"]) == (0, 0)
        assert everything_in(copy) == after


def assert_samples(source: store.Store, copy: store.Store, carries: Any) -> None:
    known = {sample.id: sample for sample in source.samples()}
    if not carries.images:
        assert not list(copy.samples())
        makers = {(s.prompt, s.model) for s in copy.samples(with_image=False)}
        assert makers <= {(s.prompt, s.model) for s in known.values()}
        return
    for sample in copy.samples():
        original = known[sample.id]
        assert all(getattr(sample, field) == getattr(original, field) for field in carries.sample)
        assert copy.image_bytes(sample.id) == source.image_bytes(sample.id)


@pytest.mark.parametrize("name", FORMATS)
def test_files_name_people_by_pseudonym(name: str, source: store.Store, tmp_path: Path) -> None:
    """Under one key `zzyx` is the same pseudonym everywhere, and the name is in no file; programs keep their names."""
    layout = plugins.load("store.formats", name)
    path = path_of(name, tmp_path)
    layout.write(source, path, pseudonyms("salt"))
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for file in files:
        text = str(parquet.read_table(file).to_pylist()) if file.suffix == ".parquet" else str(file.read_bytes())
        assert "zzyx" not in text and "zzyx" not in file.name
    with store.open(f"sqlite:///{tmp_path}/copy.db") as copy:
        layout.read(path, copy)
        people = {record.judge for record in copy.feedback() if record.judge.startswith("human:")}
    if "judge" in layout.CARRIES.feedback:
        assert people == {pseudonyms("salt")("human:zzyx")} != {pseudonyms("other")("human:zzyx")}


@pytest.mark.parametrize("name", [n for n in FORMATS if plugins.load("store.formats", n).CARRIES.datasets])
def test_datasets_reads_what_is_written(name: str, source: store.Store, tmp_path: Path) -> None:
    """`datasets.load_dataset` on the local file, offline; image columns come out as images."""
    from datasets import load_dataset

    layout = plugins.load("store.formats", name)
    path = path_of(name, tmp_path)
    counts = layout.write(source, path, keep)
    kind = layout.CARRIES.datasets
    where = {"data_dir": str(path)} if kind == "imagefolder" else {"data_files": str(path)}
    if name == "parquet":
        where = {"data_files": str(path / "samples.parquet")}
    rows = load_dataset(kind, split="train", cache_dir=str(tmp_path / "cache"), **where)
    assert len(rows) in {n for n in counts.values() if isinstance(n, int)} | {
        sum(v for v in counts.values() if isinstance(v, int))
    }
    pictures = [cell for cell in rows[0].values() if isinstance(cell, Image.Image)]
    wanted = {"kto": 1, "imagereward": 1, "parquet": 1, "rapidata": 2, "genai_bench": 2, "folders": 1}
    assert len(pictures) == wanted.get(name, 0)


WRONG: dict[str, list[tuple[str, str, str]]] = {
    ".parquet": [("cut", "", "cannot be read as parquet"), ("other", "", "expected")],
    ".jsonl": [("x.jsonl", '{"a": 1}\n{"b"', ""), ("x.jsonl", "[1]\n", "")],
    ".json": [("x.json", '[{"prompt": "a"', "cut off or damaged"), ("x.json", '{"a": 1}', "does not begin with ["),
              ("x.json", '[{"prompt": "a"}]', "expected"), ("x.json", "[3]", "expected an object")],
    ".csv": [("x.csv", "prompt,label\na,b\n", "no 'image_a'"),
             ("x.csv", "prompt,image_a,image_b,label\na,1,2,z\n", "label")],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*FORMATS} - FOLDERS))
def test_wrong_files_are_one_line(name: str, tmp_path: Path) -> None:
    layout = plugins.load("store.formats", name)
    suffix = SUFFIX.get(name, ".parquet")
    with store.open(f"sqlite:///{tmp_path}/s.db") as opened:
        for file, text, line in WRONG[suffix]:
            path = tmp_path / (file if "." in file else f"x{suffix}")
            path.write_text(text)
            if file == "cut":
                parquet.write_table(pa.table({"prompt": ["x" * 1000]}), path)
                path.write_bytes(path.read_bytes()[:-50])
            if file == "other":
                parquet.write_table(pa.table({"nothing": [1, 2]}), path)
            with pytest.raises(InputError) as caught:
                layout.read(path, opened)
            assert line in str(caught.value)
            assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="no file"):
            layout.read(tmp_path / f"nowhere{suffix}", opened)


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_wrong_folders_are_one_line(name: str, tmp_path: Path) -> None:
    layout = plugins.load("store.formats", name)
    with store.open(f"sqlite:///{tmp_path}/s.db") as opened:
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError) as caught:
            layout.read(tmp_path / "empty", opened)
        assert "expected" in str(caught.value) and "\n" not in str(caught.value)
        with pytest.raises(InputError, match="is there already"):
            layout.write(opened, tmp_path)


# files in the layouts of the tools themselves


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], list[Feedback], dict[str, Sample]]]:
    """``read("hpd", path)`` -> counts, feedback, samples by id (also those without an image)."""

    def load(name: str, path: Path) -> tuple[dict[str, Any], list[Feedback], dict[str, Sample]]:
        with store.open(f"sqlite:///{tmp_path}/theirs.db") as opened:
            counts = plugins.load("store.formats", name).read(path, opened)
            return counts, list(opened.feedback()), {s.id: s for s in opened.samples(with_image=False)}

    return load


Read = Callable[[str, Path], tuple[dict[str, Any], list[Feedback], dict[str, Sample]]]


def table(path: Path, rows: list[dict[str, Any]], **kinds: Any) -> Path:
    schema = pa.Table.from_pylist(rows).schema
    fields = [pa.field(f.name, kinds.get(f.name, f.type)) for f in schema]
    parquet.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path)
    return path


def pick(i: int, label: float, **more: Any) -> dict[str, Any]:
    return {
        "are_different": True, "best_image_uid": "u0", "caption": "a cat", "created_at": WHEN.replace(tzinfo=None),
        "has_label": True, "image_0_uid": "u0", "image_0_url": "http://dead", "image_1_uid": "u1", "image_1_url": "",
        "jpg_0": png(1), "jpg_1": png(2), "label_0": label, "label_1": 1 - label, "model_0": "sdxl", "model_1": "dream",
        "ranking_id": i, "user_id": 7, "num_example_per_prompt": 1, "__index_level_0__": i, "mood": "blue",
    } | more  # fmt: skip


def test_pickapic_as_published(read: Read, tmp_path: Path) -> None:
    """A win, a loss, a tie, and a row without label; timestamps in ns; a column nobody knows."""
    rows = [pick(0, 1.0), pick(1, 0.0), pick(2, 0.5), pick(3, 1.0, has_label=False), pick(4, 1.0, jpg_0=b"torn")]
    path = table(tmp_path / "train-00000.parquet", rows, created_at=pa.timestamp("ns"))
    counts, records, samples = read("pickapic", path)
    assert [r.choice for r in records] == ["a", "b", "tie"]
    assert counts == {"sample": 2, "feedback": 3, "dropped": {"damaged image": 1, "no label": 1}}
    assert [samples[name].model for name in records[0].sample_ids] == ["sdxl", "dream"]
    assert records[0].judge == "human:pickapic-7" and records[0].created_at == WHEN
    assert records[0].extra == {"mood": "blue"}


def test_pickapic_without_images_and_rows_of_four(read: Read, tmp_path: Path) -> None:
    row = {k: v for k, v in pick(0, 1.0).items() if not k.startswith("jpg")}
    _, records, samples = read("pickapic", table(tmp_path / "no_images.parquet", [row]))
    assert records[0].choice == "a" and all(sample.path == "" for sample in samples.values())
    four = {f"image_{i}_uid": f"u{i}" for i in range(1, 5)} | {"best_image_uid": "u3", "prompt": "a dog", "user_id": 1}
    _, records, _ = read("pickapic", table(tmp_path / "rankings.parquet", [four]))
    assert (records[-1].kind, records[-1].values) == ("best", (0, 0, 1, 0))


def test_what_pickapic_readers_would_do_with_our_file(source: store.Store, tmp_path: Path) -> None:
    """diffusers' trainer: first wins unless label_0 == 0. Salesforce's: label_0 in (0, 1). Both see our winners."""
    layout = plugins.load("store.formats", "pickapic")
    counts = layout.write(source, tmp_path / "p.parquet")
    rows = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    votes = {r.id: r for r in source.feedback()}
    assert counts["pairs"] == len(rows) == 12
    assert counts["dropped"] == {
        "best": 3, "both_bad": 3, "flag": 3, "like": 6, "ranking": 3, "rating": 3, "region": 3, "skip": 3, "text": 3,
        "tie": 3, "words": 3,
    }  # fmt: skip
    for row in rows:
        assert row["label_0"] in (0, 1) and row["label_0"] + row["label_1"] == 1 and row["has_label"]
        winner = row["jpg_1"] if row["label_0"] == 0 else row["jpg_0"]
        vote = votes[row["feedback_id"]]
        assert winner == source.image_bytes(vote.sample_ids[0 if vote.choice == "a" else 1])
        assert row["num_example_per_prompt"] == 4


def test_hpd_as_published(read: Read, tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{i}.png").write_bytes(png(i))
    train = [{"prompt": "a", "file_path": ["0.png", "1.png"], "human_preference": [0, 1]},
             {"prompt": "a", "file_path": ["0.png", "1.png"], "human_preference": [1, 1]}]  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(train))
    counts, records, samples = read("hpd", tmp_path / "train.json")
    assert counts["dropped"] == {"no preference": 1}
    assert records[0].choice == "b" and all(samples[name].path for name in records[0].sample_ids)
    votes = [{"rank": [1, 2, 3], "user_hash": "x"}, {"rank": [2, 1, 3], "user_hash": "y"}]
    test = [{"prompt": "b", "image_path": ["0.png", "1.png", "gone.png"], "rank": [1, 2, 3], "raw_annotations": votes}]
    (tmp_path / "test.json").write_text(json.dumps(test, indent=1))
    _, records, _ = read("hpd", tmp_path / "test.json")
    assert [(r.kind, r.judge, r.values) for r in records[1:]] == [
        ("ranking", "human:hpd-x", (0, 1, 2)), ("ranking", "human:hpd-y", (1, 0, 2)),
    ]  # fmt: skip


def test_hpdv3_sides_are_drawn_anew(read: Read, tmp_path: Path) -> None:
    """path1 always wins in the file; of 40 rows the winner is first in 20 -+ 4 sd = 13, wherever it stands."""
    rows = [{"prompt": f"p{i}", "path1": f"w{i}.png", "path2": f"l{i}.png", "confidence": 0.97, "choice_dist": [9, 3],
             "model1": "win", "model2": "lose"} for i in range(40)]  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(rows))
    _, records, samples = read("hpd", tmp_path / "train.json")
    first = sum(record.choice == "a" for record in records)
    assert 7 <= first <= 33
    for record in records:
        winner = record.sample_ids[0 if record.choice == "a" else 1]
        assert samples[winner].model == "win" and max(record.values) == 0.75
        assert record.extra == {"confidence": 0.97, "choice_dist": [9, 3]}


def test_imagereward_as_published(read: Read, tmp_path: Path) -> None:
    """Two groups whose rows are mixed, one with a tie; three ratings each; and the paper's test.json."""
    rows = [
        {"image": {"bytes": png(10 * g + k), "path": "x.webp"}, "prompt_id": f"000864-{g}", "prompt": f"p{g}",
         "classification": "People", "image_amount_in_total": 3, "rank": [1, 2, 2][k], "overall_rating": 7 - k,
         "image_text_alignment_rating": 5, "fidelity_rating": 6}
        for k in range(3) for g in range(2)
    ]  # fmt: skip
    counts, records, samples = read("imagereward", table(tmp_path / "metadata-train.parquet", rows))
    assert counts == {"sample": 6, "feedback": 8, "dropped": {}}
    assert [r.values for r in records if r.kind == "ranking"] == [(0, 1, 1)] * 2
    assert {(r.criterion, r.values) for r in records if r.kind == "rating"} == {
        ("overall", (7, 6, 5)), ("alignment", (5, 5, 5)), ("fidelity", (6, 6, 6)),
    }  # fmt: skip
    assert next(iter(samples.values())).category == "People"
    listed = [{"id": "1", "prompt": "q", "generations": ["a.png", "b.png", "c.png"], "ranking": [1, 5, 3]}]
    (tmp_path / "test.json").write_text(json.dumps(listed))
    assert read("imagereward", tmp_path / "test.json")[1][-1].values == (0, 4, 2)


def test_imagereward_ratings_come_back_with_their_ranking(tmp_path: Path) -> None:
    rated = {"image_text_alignment_rating": 4, "fidelity_rating": 3, "image_amount_in_total": 2}
    rows = [{"image": png(k), "prompt_id": "1", "prompt": "p", "rank": k + 1, "overall_rating": 5 - k} for k in (0, 1)]
    rows = [row | rated for row in rows]
    layout = plugins.load("store.formats", "imagereward")
    with store.open(f"sqlite:///{tmp_path}/a.db") as one, store.open(f"sqlite:///{tmp_path}/b.db") as two:
        layout.read(table(tmp_path / "x.parquet", rows), one)
        assert layout.write(one, tmp_path / "y.parquet", keep) == {"groups": 1, "images": 2, "dropped": {}}
        layout.read(tmp_path / "y.parquet", two)
        said = [[(r.kind, r.criterion, r.values) for r in s.feedback()] for s in (one, two)]
        assert said[0] == said[1] and len(said[0]) == 4


def test_open_image_preferences_as_published(read: Read, tmp_path: Path) -> None:
    images = {"image_1": {"bytes": png(1), "path": None}, "image_2": {"bytes": png(2), "path": None}, "prompt": "p"}
    row = {
        "id": "r", "status": "completed", "_server_id": "s", "images": images, "model_1": "dev", "model_2": "sd",
        "preference.responses": ["image_2", "both_good", "toxic_content", "image_1"],
        "preference.responses.users": ["u1", "u2", "u3", "u4"],
        "preference.responses.status": ["submitted", "submitted", "submitted", "draft"], "category": "Cinema",
    }  # fmt: skip
    _, records, _ = read("open_image_preferences", table(tmp_path / "r.parquet", [row]))
    assert [(r.judge, r.choice) for r in records] == [
        ("human:argilla-u1", "b"), ("human:argilla-u2", "tie"), ("human:argilla-u3", "flag"),
    ]  # fmt: skip
    assert records[0].extra == {"category": "Cinema"}
    chosen = [{"id": str(i), "prompt": f"q{i}", "chosen": {"bytes": png(3), "path": ""}, "chosen_model": "good",
               "rejected": {"bytes": png(4), "path": ""}, "rejected_model": "bad"} for i in range(30)]  # fmt: skip
    _, records, samples = read("open_image_preferences", table(tmp_path / "b.parquet", chosen))
    won = [records[3 + i].sample_ids[0 if records[3 + i].choice == "a" else 1] for i in range(30)]
    assert {samples[name].model for name in won} == {"good"}
    assert {r.choice for r in records[3:]} == {"a", "b"}, "sides drawn anew"


def test_rapidata_old_and_new(read: Read, tmp_path: Path) -> None:
    common = {"prompt": "p", "image1": {"bytes": png(1), "path": "1.png"}, "image2": {"bytes": png(2), "path": "2.png"},
              "model1": "m1", "model2": "m2"}  # fmt: skip
    old = common | {"votes_image1": 3, "votes_image2": 7, "detailed_results": '[{"v": 1}]', "image1_path": "1"}
    _, records, _ = read("rapidata", table(tmp_path / "old.parquet", [old]))
    assert (records[0].choice, records[0].values) == ("b", (0.3, 0.7))
    assert records[0].extra == {"votes": [3, 7], "detailed_results": '[{"v": 1}]'}
    new = common | {f"weighted_results_image{i}_{x}": w for x in ("preference", "coherence", "alignment")
                    for i, w in ((1, 0.75), (2, 0.25))} | {"detailed_results_preference": "[]"}  # fmt: skip
    path = table(
        tmp_path / "new.parquet", [new], **dict.fromkeys([k for k in new if k.startswith("weighted")], pa.float32())
    )
    _, records, _ = read("rapidata", path)
    assert [(r.criterion, r.values) for r in records[1:]] == [
        (name, (0.75, 0.25)) for name in ("overall", "coherence", "alignment")
    ]


def test_imgsys_as_published(read: Read, tmp_path: Path) -> None:
    """0 is a vote for model_a, as the arena's own rating reads it; no images."""
    rows = [{"model_a": "x", "model_b": "y", "preference": p, "prompt": "q"} for p in (0.0, 1.0, 0.5)]
    _, records, samples = read("imgsys", table(tmp_path / "imgsys.parquet", rows))
    assert [r.choice for r in records] == ["a", "b", "tie"]
    assert [samples[name].model for name in records[0].sample_ids] == ["x", "y"]


def test_genai_bench_and_arena_logs(read: Read, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "left_model": "l", "left_image": {"bytes": png(1), "path": None}, "right_model": "r",
             "right_image": {"bytes": png(2), "path": None}, "vote_type": vote}
            for vote in ("leftvote", "rightvote", "tievote", "bothbad_vote")]  # fmt: skip
    _, records, _ = read("genai_bench", table(tmp_path / "bench.parquet", rows))
    assert [r.choice for r in records] == ["a", "b", "tie", "both_bad"]
    arena = [{"question_id": "q1", "model_a": "l", "model_b": "r", "winner": w, "judge": "10.1.2.3", "tstamp": 1.7e9}
             for w in ("model_b", "tie (bothbad)")]  # fmt: skip
    log = [{"tstamp": 1.7e9, "type": "leftvote", "models": ["l", "r"], "states": [{"prompt": "p"}], "ip": "10.1.2.3"},
           {"tstamp": 1.7e9, "type": "chat", "models": ["l", "r"], "states": [], "ip": "10.1.2.3"}]  # fmt: skip
    (tmp_path / "clean.json").write_text(json.dumps(arena))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    assert [r.choice for r in read("genai_bench", tmp_path / "clean.json")[1][4:]] == ["b", "both_bad"]
    counts, records, _ = read("genai_bench", tmp_path / "log.jsonl")
    assert records[-1].choice == "a" and counts["dropped"] == {"not a vote": 1}
    assert "10.1.2.3" not in "".join(r.model_dump_json() for r in records), "an address is not kept"


def test_label_studio_export(read: Read, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    (tmp_path / "2.png").write_bytes(png(2))

    def annotation(number: int, selected: str, **more: Any) -> dict[str, Any]:
        result = {"type": "pairwise", "from_name": "pw", "to_name": "left,right", "value": {"selected": selected}}
        by = {"id": number, "email": "ada@example.org"}
        said = {"id": number, "completed_by": by, "lead_time": 3.5, "was_cancelled": False, "result": [result]}
        return said | {"created_at": "2026-03-04T05:06:07.089000Z"} | more

    task = {"id": 1, "data": {"img_a": "1.png", "img_b": "2.png", "text": "p", "batch": 9}, "annotations": [
        annotation(4, "left"), annotation(5, "right"), annotation(6, "left", was_cancelled=True, result=[]),
    ]}  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps([task]))
    _, records, _ = read("label_studio", tmp_path / "export.json")
    assert [(r.judge, r.choice, r.seconds, r.sides) for r in records] == [
        (f"human:label_studio-{n}", c, 3.5, (0, 1)) for n, c in ((4, "a"), (5, "b"), (6, "skip"))
    ]
    assert records[0].created_at == WHEN and records[0].extra == {"batch": 9}
    assert "ada@" not in records[0].model_dump_json()


def test_d3po_folders(read: Read, tmp_path: Path) -> None:
    """Images by number, not by spelling: 10.png comes after 2.png."""
    folder = tmp_path / "d3po"
    (folder / "images").mkdir(parents=True)
    for i in range(11):
        (folder / "images" / f"{i}.png").write_bytes(png(i))
    (folder / "prompt.json").write_text(json.dumps([f"p{i}" for i in range(11)]))
    (folder / "bob.json").write_text(json.dumps(list(range(11))))
    _, records, samples = read("d3po", folder)
    assert [(samples[r.sample_ids[0]].prompt, r.values) for r in records] == [(f"p{i}", (i,)) for i in range(11)]
    assert {r.judge for r in records} == {"human:bob"}
    (folder / "bob.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="2 entries for 11 images"):
        read("d3po", folder)


def test_d3po_groups_of_the_release(read: Read, tmp_path: Path) -> None:
    """A directory of files, each a list of groups of scores; who stopped early has said nothing about the rest."""
    folder = tmp_path / "d3po"
    (folder / "images").mkdir(parents=True)
    (folder / "scores").mkdir()
    for i in range(6):
        (folder / "images" / f"{i:05d}.png").write_bytes(png(i))
    (folder / "prompt.json").write_text(json.dumps(["a fox", "a hat"]))
    (folder / "scores" / "ada.json").write_text("[[0, -1, 0], [0, 0, -1]]")
    (folder / "scores" / "bob.json").write_text("[[-1, 0, 0]]")
    _, records, samples = read("d3po", folder)
    said = {(r.judge, samples[r.sample_ids[0]].prompt, r.values) for r in records}
    assert len(records) == 9
    assert said == {
        ("human:ada", "a fox", (0,)), ("human:ada", "a fox", (-1,)), ("human:ada", "a hat", (0,)),
        ("human:ada", "a hat", (-1,)), ("human:bob", "a fox", (0,)), ("human:bob", "a fox", (-1,)),
    }  # fmt: skip
    (folder / "scores" / "bob.json").write_text("[[-1, 0, 0], [1]]")
    with pytest.raises(InputError, match=r"bob\.json has groups of \[1, 3\] scores; expected groups of one size"):
        read("d3po", folder)


COMFY = {
    "3": {"class_type": "KSampler", "inputs": {"positive": ["9", 0], "negative": ["7", 0], "seed": 1}},
    "9": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 0]}},
}


def test_liked_and_disliked_folders(read: Read, tmp_path: Path) -> None:
    """Prompts from A1111's text, ComfyUI's graph, NAME.txt; an image without any is counted."""
    root = tmp_path / "votes"
    (root / "liked").mkdir(parents=True)
    (root / "disliked").mkdir()
    a1111 = "a cat,\nby night\nNegative prompt: dogs\nSteps: 20, Sampler: Euler, Seed: 1"
    (root / "liked" / "1.png").write_bytes(png(1, parameters=a1111))
    (root / "liked" / "2.png").write_bytes(png(2, prompt=json.dumps(COMFY)))
    (root / "disliked" / "3.png").write_bytes(png(3))
    (root / "disliked" / "3.txt").write_text("a hat\n")
    (root / "disliked" / "4.png").write_bytes(png(4))
    counts, records, samples = read("folders", root)
    assert counts["dropped"] == {"no prompt": 1}
    found = [(samples[r.sample_ids[0]].prompt, samples[r.sample_ids[0]].negative, r.values[0]) for r in records]
    assert found == [("a cat,\nby night", "dogs", 1), ("a fox", "blurry", 1), ("a hat", "", -1)]
    (root / "metadata.jsonl").write_text('{"file_name": "../../etc/passwd", "prompt": "x"}\n')
    with pytest.raises(InputError, match="not in liked/ or disliked/"):
        read("folders", root)


def test_csv_is_safe_in_spreadsheets(source: store.Store, tmp_path: Path) -> None:
    """No cell begins with what a spreadsheet takes for a formula, and the trainer's reader takes the apostrophe off."""
    import csv

    from visfeedback.preferences.files import read_pairs

    plugins.load("store.formats", "csv").write(source, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.strip().startswith(("=", "+", "-", "@", "\t"))]
    assert {row.prompt for row in read_pairs(tmp_path / "x.csv")} == set(PROMPTS)


def test_names_that_lead_out_of_the_folder_are_not_followed(read: Read, tmp_path: Path) -> None:
    """A list from elsewhere cannot make the store swallow a file beside it."""
    (tmp_path / "secret.png").write_bytes(png(9))
    inside = tmp_path / "inside"
    inside.mkdir()
    names = ["../secret.png", str(tmp_path / "secret.png")]
    (inside / "train.json").write_text(json.dumps([{"prompt": "a", "file_path": names, "human_preference": [0, 1]}]))
    _, _, samples = read("hpd", inside / "train.json")
    assert [sample.path for sample in samples.values()] == ["", ""]
