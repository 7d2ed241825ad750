"""The page of a scoring run: what stands on it, and what it looks like in Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from visfeedback.cli import main

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture
def page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "torn.txt").write_text("a red circle")
    out = tmp_path / "report.html"
    code = main(["score", "--images", str(folder), "--reward", "shapes_clip", "shapes_verifier", "--out",
                 str(tmp_path / "o.csv"), "--report", str(out), "--device", "cpu"])  # fmt: skip
    assert code == 3, capsys.readouterr().err
    return out


def test_numbers_galleries_failures_and_origins(page: Path) -> None:
    """10 images and two rewards: every picture in each gallery, best first, and the torn one with its reason."""
    html = page.read_text()
    for words in ("9 images scored by 2 rewards", "shapes_clip, best to worst", "Do they agree?", "What failed",
                  "torn.png", "not an image", "o.csv.failed.jsonl", "visfeedback score --images"):  # fmt: skip
        assert words in html, words
    assert html.count("data:image/png") == 20
    shown = [float(value.replace("\N{MINUS SIGN}", "-")) for value in re.findall(r"<b>([^<]+)</b>", html)]
    assert shown[:10] == sorted(shown[:10], reverse=True)
    assert "<svg" in html


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_in_chromium(page: Path, width: int) -> None:
    """Nothing sticks out, every picture is there and square, several stand side by side, nothing is fetched."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = chromium.new_page(viewport={"width": width, "height": 900})
        said: list[str] = []
        asked: list[str] = []
        opened.on("console", lambda message: said.append(message.text))
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(page.as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
        boxes = opened.evaluate(
            "[...document.querySelectorAll('.gallery img')].map(i => { const b = i.getBoundingClientRect();"
            " return [b.width, b.height, b.top, i.naturalWidth, getComputedStyle(i).imageRendering]; })"
        )
        chromium.close()
    assert len(boxes) == 20
    assert all(w == pytest.approx(h, abs=1) and n == 64 and r == "pixelated" for w, h, _, n, r in boxes)
    in_first_row = sum(box[2] == boxes[0][2] for box in boxes)
    assert in_first_row >= (2 if width == 390 else 6)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
