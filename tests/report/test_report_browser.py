"""The page in a real Chromium: phone and desktop, light and dark; no overflow, no errors, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visfeedback.report import plots
from visfeedback.report.blocks import Cards, Command, Figures, Number, Section, Share, Shares, Table, Text, Track
from visfeedback.report.curves import training_curves
from visfeedback.report.grids import before_after
from visfeedback.report.page import Page, write_page

pytestmark = pytest.mark.browser
CHROMIUM = "/usr/bin/chromium"
SIZES = {"phone": (390, 844), "desktop": (1440, 900)}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A page with every block, long words and long prompts."""
    rng = np.random.default_rng(0)

    def noise(side: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))

    long = [
        before_after("a picture of " + "very " * i + "small circles", noise(64), noise(64),
                     ("wrong: count, color, position, background", "right"), "mended")
        for i in (1, 12)
    ]  # fmt: skip
    cards = (*long, before_after("a photograph", noise(512), noise(512)))
    rates = {name: {"base": plots.Rate(0.4, 0.3, 0.5), "tuned": plots.Rate(0.6, 0.5, 0.7)}
             for name in ("two_objects", "non_spatial")}  # fmt: skip
    rows = [{"step": i, "loss": 0.7 - 0.001 * i, "drift": 0.001 * i} for i in range(60)]
    table = Table(
        ("Category", "Base", "Tuned", "Points"), (("non spatial", "31.1%", "45.9%", "+14.9 (+5.3 to +24.5)"),)
    )
    sections = [
        Section("What changed", (Shares((Share("mended", 9, "good", True), Share("broken", 3, "bad", True))),
                                 Figures((plots.rates("rates", "By category", rates),)), table)),
        Section("Before and after", (Cards(cards, "Mended: 3 of 9"),)),
        Section("How it learned", (training_curves(rows),)),
        Section("Settings", (Table((), (("data.store", "sqlite:///" + "x" * 90),), words=True),
                             Text(("word " * 60 + "y" * 200,)))),
        Section("Do it again", (Command("visfeedback quickstart --out " + "z" * 120),)),
    ]  # fmt: skip
    number = Number("Tuned minus base", "+6.1", "points", "95% interval +3.2 to +9.0", "", "good",
                    Track.around(6.1, 3.2, 9.0, 0))  # fmt: skip
    page = Page("6.1 points more images fully right", sections, "visfeedback", "about " * 30, [number] * 4)
    return write_page(tmp_path_factory.mktemp("page") / "report.html", page).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def page(request, browser, address) -> Iterator[Any]:
    """The opened page; what its console said and what it asked for are in ``page.said`` and ``page.asked``."""
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    opened = context.new_page()
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(address)
    yield opened
    context.close()


def test_nothing_sticks_out_and_nothing_goes_wrong(page, address):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [address]


def test_all_pictures_are_there_and_pixel_art_is_at_least_doubled(page):
    pictures = page.evaluate(
        "[...document.images].map(i => ({loaded: i.complete && i.naturalWidth > 0, alt: i.alt,"
        " scale: i.clientWidth / i.naturalWidth, rendering: getComputedStyle(i).imageRendering}))"
    )
    assert len(pictures) == 6
    assert all(picture["loaded"] and picture["alt"] for picture in pictures)
    small = [p for p in pictures if p["rendering"] == "pixelated"]
    assert len(small) == 4
    assert all(2 <= picture["scale"] <= 3 for picture in small)


def _luminance(rgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_letters_have_contrast(page):
    """WCAG AA: 4.5 to 1 for every kind of text against the nearest painted background behind it."""
    found = page.evaluate("""() => {
      const rgb = c => c.match(/[\\d.]+/g).map(Number);
      const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
      return ["h1", ".summary", ".number dt", ".number .value", ".number .interval", "nav a", ".lead", ".card .prompt",
              ".tag", ".mark.good", ".mark.bad", "figcaption", "th", "td", ".command code",
              ".command button", "footer p"]
        .map(s => [s, document.querySelector(s)]).filter(([s, e]) => e)
        .map(([s, e]) => [s, rgb(getComputedStyle(e).color).slice(0, 3), behind(e)]);
    }""")
    assert len(found) >= 15
    for selector, front, back in found:
        light, dark = sorted((_luminance(front), _luminance(back)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, selector


def test_plots_follow_the_scheme_and_stay_readable(page):
    """Letters in plots at least 9 px high on the screen; their colour is the page's own."""
    heights, fill, ink = page.evaluate("""() => {
      const texts = [...document.querySelectorAll(".plot svg text")];
      return [texts.map(t => t.getBoundingClientRect().height), getComputedStyle(texts[0]).fill,
              getComputedStyle(document.querySelector("figcaption")).color];
    }""")
    assert min(heights) >= 9
    assert fill == ink, "tick labels use the page's muted colour"


def test_copy_button(page):
    button = page.locator("button[data-copy]")
    assert button.is_visible()
    button.click()
    page.wait_for_function("['Copied', 'Selected'].includes(document.querySelector('button[data-copy]').textContent)")


def test_the_keyboard_finds_the_content_first_and_sees_where_it_is(page):
    page.keyboard.press("Tab")
    focus = page.evaluate("""() => { const e = document.activeElement;
      return [e.getAttribute("href"), e.getBoundingClientRect().left, getComputedStyle(e).outlineStyle]; }""")
    assert focus[0] == "#content"
    assert focus[1] >= 0, "the link shows itself when focused"
    assert focus[2] == "solid"


def test_links_of_the_navigation_lead_to_sections(page):
    targets = page.evaluate("[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))")
    assert targets == [True] * 5
