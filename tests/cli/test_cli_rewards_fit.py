"""`visfeedback rewards fit` through the command's front door: from a store, from a pairs file, and wrong input."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from numpy.random import default_rng
from PIL import Image

from visfeedback import rewards
from visfeedback.cli import main
from visfeedback.shapes.grammar import read
from visfeedback.shapes.renderer import draw_scene, render_image
from visfeedback.types.files import append_jsonl
from visfeedback.types.records import Prompt, Sample, image_id

TEXTS = (
    "a red circle",
    "two blue squares",
    "a green triangle",
    "a yellow cross",
    "a big red square",
    "three red circles",
)
FEW = ("--epochs", "3", "--device", "cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six prompts with three images each, one of which shows what the prompt says."""
    folder = tmp_path / "images"
    folder.mkdir()
    for p, text in enumerate(TEXTS):
        prompt = Prompt.of(text)
        for k in range(3):
            image = render_image(draw_scene(read(TEXTS[(p + k) % len(TEXTS)]), default_rng([p, k])))
            image.save(folder / f"{p}-{k}.png")
            name = image_id(64, 64, image.convert("RGB").tobytes())
            append_jsonl(folder / "samples.jsonl", [
                Sample(id=name, prompt_id=prompt.id, prompt=text, path=f"{p}-{k}.png", width=64, height=64)
            ])  # fmt: skip
    return folder


@pytest.fixture
def pairs(images: Path) -> Path:
    """All pairs of a prompt; the image that shows it wins, the other two tie."""
    rows = [
        {"prompt": text, "image_a": f"{p}-{a}.png", "image_b": f"{p}-{b}.png", "label": "a" if a == 0 else "tie"}
        for p, text in enumerate(TEXTS) for a, b in combinations(range(3), 2)
    ]  # fmt: skip
    file = images / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def fit(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["rewards", "fit", *args, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_from_a_store(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verifier's 18 answers are learned from; the folder loads as a reward and its card says the numbers."""
    url, out = f"sqlite:///{tmp_path}/prefs.db", tmp_path / "fit"
    assert main(["label", "--store", url, "--judge", "verifier:shapes", "--images", str(images), "--pairs", "all"]) == 0
    code, found = fit(capsys, "--store", url, "--out", str(out), *FEW)
    assert code == 0
    assert sum(found["comparisons"].values()) == 18
    assert sum(found["prompts"].values()) == 6
    assert found["command"] == "rewards fit"
    card = (out / "card.md").read_text()
    assert "`visfeedback rewards fit --store" in card
    assert found["accuracy"] is None or f"{100 * found['accuracy']['value']:.1f}%" in card
    reward = rewards.load(f"fit@{out}")
    assert rewards.score(reward, [Image.open(images / "0-0.png")], [TEXTS[0]]).shape == (1,)


def test_from_a_pairs_file_and_again(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command again finds the work done; another seed in the same folder is refused."""
    args = ("--pairs", str(pairs), "--out", str(tmp_path / "fit"), *FEW)
    code, first = fit(capsys, *args)
    assert code == 0
    assert first["left_out"] == {}
    code, again = fit(capsys, *args)
    assert code == 0
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    code, refused = fit(capsys, *args, "--seed", "7")
    assert code == 2
    assert "give another --out" in refused["error"]


def test_ties_can_be_dropped(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three pairs a prompt, one of them a tie."""
    code, found = fit(capsys, "--pairs", str(pairs), "--out", str(tmp_path / "fit"), "--ties", "drop", *FEW)
    assert code == 0
    assert found["left_out"] == {"tie": 6}
    assert sum(found["comparisons"].values()) == 12


def test_bad_images_are_listed_and_the_rest_is_learned(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Truncated, empty and renamed: exit code 3, three lines, their comparisons left out, a reward all the same."""
    folder = pairs.parent
    (folder / "0-1.png").write_bytes((folder / "0-1.png").read_bytes()[:80])
    (folder / "1-2.png").write_bytes(b"")
    (folder / "2-1.png").write_text("a text in disguise")
    code, found = fit(capsys, "--pairs", str(pairs), "--out", str(tmp_path / "fit"), *FEW)
    assert code == 3
    assert len(found["failed"]) == 3
    assert found["left_out"] == {"with an unreadable image": 6}
    assert sum(found["comparisons"].values()) == 12
    assert rewards.load(f"fit@{tmp_path / 'fit'}").name == "fit"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "--store sqlite:///prefs.db"),
        (("--store", "sqlite:///x.db", "--pairs", "y.jsonl"), "give one of"),
        (("--pairs", "nowhere.jsonl"), "no file nowhere.jsonl"),
        (("--store", "sqlite:///nowhere.db"), "no store at nowhere.db"),
        (("--pairs", "PAIRS", "--criterion", "beauty"), "no criteria"),
        (("--pairs", "PAIRS", "--base", "shapes_klip"), "did you mean 'shapes_clip'"),
        (("--pairs", "PAIRS", "--base", "shapes_verifier"), "has no network"),
        (("--pairs", "PAIRS", "--device", "cuda:77"), "no device 'cuda:77'"),
        (("--pairs", "PAIRS", "--test", "1.5"), "--test"),
        (("--pairs", "ONE"), "a fit needs at least 3"),
        (("--pairs", "TIES"), "nothing to learn from"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_leaves_nothing(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], words: str
) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    files = {"PAIRS": pairs, "ONE": pairs.with_name("one.jsonl"), "TIES": pairs.with_name("ties.jsonl")}
    files["ONE"].write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    files["TIES"].write_text("".join(json.dumps(row | {"label": "tie"}) + "\n" for row in rows))
    flags = [str(files.get(arg, arg)) for arg in args]
    code, found = fit(capsys, *flags, "--out", str(tmp_path / "fit"))
    assert code == 2
    assert words in found["error"]
    assert "\n" not in found["error"]
    assert not (tmp_path / "fit").exists()


def test_a_store_without_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from visfeedback import store

    url = f"sqlite:///{tmp_path}/empty.db"
    store.open(url).close()
    code, found = fit(capsys, "--store", url, "--out", str(tmp_path / "fit"))
    assert code == 2
    assert "holds no comparisons" in found["error"] and "visfeedback label" in found["error"]
