"""`visfeedback score` through its front door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from numpy.random import default_rng
from PIL import Image
from pyarrow import parquet

from visfeedback.cli import main
from visfeedback.shapes.grammar import read
from visfeedback.shapes.renderer import draw_scene, render_image

TEXTS = ("a red circle", "two blue squares", "a green triangle", "a yellow cross")
COLUMNS = ["image", "image_sha256", "prompt", "reward", "score", "model", "revision", "checkpoint_sha256",
           "preprocessing", "dtype"]  # fmt: skip


@pytest.fixture(autouse=True)
def calm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("visfeedback.cli.console.calm", lambda *_: None)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for n, text in enumerate(TEXTS):
        render_image(draw_scene(read(text), default_rng(n))).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(text)
    return folder


@pytest.fixture
def score(
    capsys: pytest.CaptureFixture[str], images: Path, tmp_path: Path
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the command with the verifier on the folder; ``out`` is a csv."""

    def run(*args: str, source: Path | str = images, reward: str = "shapes_verifier", out: str = "o.csv") -> Any:
        capsys.readouterr()
        code = main(["score", "--images", str(source), "--reward", *reward.split(), "--out", str(tmp_path / out),
                     "--device", "cpu", "--json", *args])  # fmt: skip
        return code, json.loads(capsys.readouterr().out)

    return run


def test_the_contract(score, images: Path, tmp_path: Path) -> None:
    code, answer = score(out="o.parquet", reward="shapes_verifier shapes_clip")
    assert code == 0
    table = parquet.read_table(tmp_path / "o.parquet")
    assert table.column_names == COLUMNS
    assert table.schema.field("score").type == pa.float64()
    assert (answer["rows"], answer["images"], answer["scored"], answer["failed_file"]) == (8, 4, 8, None)
    found = answer["rewards"]["shapes_verifier"]
    assert {"n", "mean", "ci95", "std", "min", "median", "max", "best", "worst"} <= set(found)
    assert found["best"][0]["score"] == pytest.approx(found["max"])
    assert found["worst"][0]["score"] == pytest.approx(found["min"])
    assert 0.9 < found["mean"] <= 1, "renders against their own prompts"
    code, answer = score(out="o.parquet", reward="shapes_verifier shapes_clip")
    assert (code, answer["scored"], answer["rows"]) == (0, 0, 8)


def test_bad_items_are_listed_and_the_rest_is_scored(score, images: Path, tmp_path: Path, capsys) -> None:
    """The issue's list: torn, empty, renamed, not an image, without a prompt; other kinds of file are no images."""
    whole = (images / "0.png").read_bytes()
    (images / "a-torn.png").write_bytes(whole[: len(whole) // 2])
    (images / "b-empty.png").write_bytes(b"")
    (images / "c-page.png").write_text("<html>")
    (images / "d-lonely.png").write_bytes((images / "1.png").read_bytes()[:-4] + b"\0\0\0\0")
    Image.open(images / "2.png").save(images / "e-renamed.png", "JPEG", quality=95)
    for name in ("a-torn", "b-empty", "c-page", "e-renamed"):
        (images / f"{name}.txt").write_text(TEXTS[2])
    (images / "notes.md").write_text("no image")
    code, answer = score()
    assert code == 3
    assert answer["rows"] == 5, "the renamed JPEG is an image"
    assert [line.partition(":")[0] for line in answer["failed"]][:3] == ["a-torn.png", "b-empty.png", "c-page.png"]
    lines = [json.loads(line) for line in (tmp_path / "o.csv.failed.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a-torn.png", "b-empty.png", "c-page.png", "d-lonely.png"]
    assert {"image", "image_sha256", "prompt", "reward", "error"} == set(lines[0])
    assert answer["error"].startswith("4 failed, the rest is scored")


def test_every_failed_item_is_a_line_for_people(images: Path, tmp_path: Path, capsys) -> None:
    for n in range(3):
        (images / f"bad{n}.png").write_bytes(b"")
        (images / f"bad{n}.txt").write_text("a red circle")
    main(["score", "--images", str(images), "--reward", "shapes_verifier", "--out", str(tmp_path / "o.csv"),
          "--device", "cpu"])  # fmt: skip
    seen = capsys.readouterr()
    assert seen.out == ""
    for n in range(3):
        assert f"warning: bad{n}.png: the file is empty" in seen.err
    for words in ("shapes_verifier", "best", "worst", "images/s", "/s 0:00"):
        assert words in seen.err
    assert seen.err.rstrip().splitlines()[-1].startswith("error: 3 failed, the rest is scored")


def test_what_fails_alike_is_one_line_for_people_and_a_line_each_for_programs(
    score, images: Path, tmp_path: Path, capsys
) -> None:
    for n in range(5):
        (images / f"bad{n}.png").write_bytes(bytes([n]) * 9)
    (images / "empty.png").write_bytes(b"")
    code = main(["score", "--images", str(images), "--reward", "compressibility", "--out", str(tmp_path / "a.csv"),
                 "--device", "cpu"])  # fmt: skip
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert code == 3
    assert [line.partition(":")[2].partition(":")[0].strip() for line in said] == ["bad0.png and 4 more", "empty.png"]
    code, answer = score(reward="compressibility")
    assert len(answer["failed"]) == 6


def test_of_many_rewards_only_the_very_best_and_worst(images: Path, tmp_path: Path, capsys) -> None:
    """Five rewards and four images: one best and one worst each, so that the means stay on the screen."""
    names = (
        "shapes_clip",
        "shapes_verifier",
        "compressibility",
        "compressibility:jpeg",
        "compressibility:incompressible",
    )
    for count, lines in ((1, 4), (5, 2)):
        main(["score", "--images", str(images), "--reward", *names[:count], "--out", str(tmp_path / f"{count}.csv"),
              "--device", "cpu"])  # fmt: skip
        seen = capsys.readouterr().err
        ends = [
            line for line in seen.splitlines() if line.startswith("shapes_clip") and ("best" in line or "worst" in line)
        ]
        assert len(ends) == lines


@pytest.mark.parametrize("pairing", ["one", "matrix"])
def test_prompts_of_a_file_and_pairings(score, images: Path, tmp_path: Path, pairing: str) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n" if pairing == "one" else "a red circle\na blue square\n")
    code, answer = score("--prompts", str(prompts), "--pairing", pairing)
    assert (code, answer["rows"]) == (0, 4 if pairing == "one" else 8)


def test_paired_prompts_may_repeat(score, tmp_path: Path) -> None:
    """Four images of two prompts: a prompt file for pairs keeps its repetitions."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na red circle\na blue square\na blue square\n")
    code, answer = score("--prompts", str(prompts), "--pairing", "paired")
    assert (code, answer["rows"], answer["prompts"]) == (0, 4, 2)


def test_samples_parquet_and_store(score, images: Path, tmp_path: Path) -> None:
    """The same four pictures from each kind of source: the same scores in the same order."""
    from visfeedback import store
    from visfeedback.types.files import append_jsonl
    from visfeedback.types.records import Prompt, Sample, image_id

    expected = score(out="folder.parquet")[1]["rewards"]["shapes_verifier"]
    samples = []
    for n, text in enumerate(TEXTS):
        image = Image.open(images / f"{n}.png").convert("RGB")
        samples.append(Sample(id=image_id(*image.size, image.tobytes()), prompt_id=Prompt.of(text).id, prompt=text,
                              path=f"images/{n}.png", width=64, height=64))  # fmt: skip
    append_jsonl(tmp_path / "samples.jsonl", samples)
    rows = {
        "image": [{"bytes": (images / f"{n}.png").read_bytes(), "path": None} for n in range(4)],
        "prompt": list(TEXTS),
    }
    parquet.write_table(pa.table(rows), tmp_path / "images.parquet")
    url = f"sqlite:///{tmp_path}/prefs.db"
    with store.open(url) as opened:
        opened.add_samples(samples, tmp_path)
    for number, (source, more) in enumerate(
        [(tmp_path / "samples.jsonl", ()), (tmp_path / "images.parquet", ()), ("store", ("--store", url))]
    ):
        code, answer = score(*more, source=source, out=f"{number}.csv")
        assert code == 0
        assert answer["rewards"]["shapes_verifier"]["mean"] == pytest.approx(expected["mean"], abs=1e-9)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--reward", "shapes_clp"), "no 'shapes_clp' in rewards; did you mean 'shapes_clip'?"),
        (("--out", "scores.txt"), "expected .parquet, .csv or .jsonl"),
        (("--images", "nowhere"), "no nowhere; expected a folder"),
        (("--prompts", "nowhere.txt"), "no file nowhere.txt"),
        (("--max-megapixels", "0"), "--max-megapixels"),
        (("--pairing", "all"), "--pairing"),
        (("--reward", "os.path"), "os.path is no reward"),
        (("--reward", "_clip_open"), "no '_clip_open' in rewards"),
        (("--reward", "."), "has no name"),
        (("--prompts", "a \udcff circle"), "is not UTF-8"),
        (("--report", "o.csv"), "expected .html"),
        (("--report", "picture.png"), "expected .html"),
    ],
)
def test_wrong_input_is_one_line(score, images: Path, args: tuple[str, str], said: str, capsys) -> None:
    given = {"--images": str(images), "--reward": "shapes_verifier", "--out": "o.csv", args[0]: args[1]}
    code = main(["score", "--device", "cpu", *(part for pair in given.items() for part in pair)])
    seen = capsys.readouterr()
    assert code == 2
    assert seen.err.count("\n") == 1
    assert said in seen.err


def test_a_report_does_not_go_where_a_folder_is(score, tmp_path: Path) -> None:
    (tmp_path / "pages.html").mkdir()
    code, answer = score("--report", str(tmp_path / "pages.html"))
    assert code == 2
    assert "is a folder" in answer["error"]
    assert not (tmp_path / "o.csv").exists(), "said before the work"


def test_one_image_has_no_interval_and_none_is_not_a_rest(score, images: Path, tmp_path: Path, capsys) -> None:
    assert main(["score", "--images", str(images / "0.png"), "--reward", "compressibility", "--device", "cpu",
                 "--out", str(tmp_path / "one.csv")]) == 0  # fmt: skip
    seen = capsys.readouterr().err
    assert "one only" in seen
    assert "inf" not in seen
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    assert "1 failed, nothing is scored" in score("--prompts", "a red circle", source=tmp_path / "bad")[1]["error"]
