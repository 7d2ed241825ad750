"""Pages: everything inside one file, everything escaped, every picture described."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from visfeedback.report import plots
from visfeedback.report.blocks import (
    Cards,
    Command,
    Figures,
    Number,
    Numbers,
    Section,
    Share,
    Shares,
    Table,
    Text,
    Track,
)
from visfeedback.report.curves import training_curves
from visfeedback.report.grids import before_after
from visfeedback.report.page import Page, render_page, standalone_svg, write_page
from visfeedback.report.tables import first_difference, settings_table
from visfeedback.types.records import Frozen

NASTY = "<script>alert('a & b')</script>"


class _Reader(HTMLParser):
    """Checks that tags are balanced and collects ids, images and addresses."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "path", "use", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(values["id"])
        if tag == "img":
            self.images.append(values)
        self.addresses += [values[key] for key in ("src", "href", "xlink:href") if values.get(key)]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"


def _page() -> Page:
    card = before_after(NASTY, Image.new("RGB", (8, 8), "red"), Image.new("RGB", (300, 200), "blue"),
                        ("wrong: count", "right"), "mended")  # fmt: skip
    rates = {"two_objects": {"base": plots.Rate(0.4, 0.3, 0.5), "tuned": plots.Rate(0.6, 0.5, 0.7)}}
    rows = [{"step": i, "loss": 0.7 - 0.01 * i, "drift": 0.1 if i % 5 == 0 else None} for i in range(30)]
    blocks = (
        Text((f"see `code` and {NASTY}",)),
        Numbers((Number("label", "1", track=Track.around(1, 0, 2, 0)),)),
        Shares((Share("mended", 3, "good", True), Share("broken", 0, "bad"))),
        Cards((card,), NASTY, "a note"),
        Figures((plots.rates("rates", NASTY, rates),)),
        training_curves(rows),
        Table(("a", NASTY), ((NASTY, "1"),), "caption"),
        Command(f"visfeedback evaluate --prompts {NASTY}"),
    )
    sections = [Section("One: first & best", blocks, NASTY), Section("Two", ()), Section("Three", ())]
    numbers = [Number(NASTY, "+1", "points", "interval", "note", "good")]
    return Page(NASTY, sections, "eyebrow", NASTY, numbers, datetime(2026, 11, 21, 7, 30, tzinfo=UTC))


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(_page())


@pytest.fixture(scope="module")
def read(html) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    return reader


def test_page_is_balanced_and_its_ids_are_unique(read):
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))


def test_nothing_is_fetched(read, html):
    assert all(address.startswith(("data:", "#")) for address in read.addresses)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_references_inside_the_page_lead_somewhere(read, html):
    inside = {a[1:] for a in read.addresses if a.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert inside <= set(read.ids)


def test_every_text_is_escaped(html):
    assert NASTY not in html
    assert "&lt;script&gt;" in html
    assert "<code>code</code>" in html


def test_every_picture_says_prompt_and_verdict(read):
    alts = [str(image["alt"]) for image in read.images]
    assert len(alts) == 2
    assert all("alert" in alt for alt in alts)
    assert alts[0].endswith("wrong: count")
    assert alts[1].endswith("right")


def test_only_pixel_art_is_enlarged_without_smoothing(read):
    assert [image.get("class") for image in read.images] == ["pixelated", None]


def test_plots_take_their_colours_from_the_page(html):
    for placeholder in plots.COLOURS.values():
        assert placeholder not in html
    assert "var(--tuned)" in html


def test_a_figure_stands_alone():
    """Well-formed SVG of its drawn size, with every colour written out, whatever its title holds."""
    figure = plots.curve("loss", 'Loss < 1 > "0"', [1, 2], [0.7, 0.6])
    drawn = standalone_svg(figure)
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and 'Loss < 1 > "0"' in root.attrib["aria-label"]
    assert root.attrib["viewBox"] == f"0 0 {root.attrib['width']} {root.attrib['height']}"
    assert "var(" in figure.svg and "var(" not in drawn and "#0b6b5b" in drawn


def test_the_same_page_is_the_same_bytes():
    assert render_page(_page()) == render_page(_page())


def test_write_page_makes_the_folder(tmp_path):
    path = write_page(tmp_path / "new" / "report.html", Page("title", []))
    assert path.read_text().startswith("<!doctype html>")
    assert list(path.parent.iterdir()) == [path]


def test_track_puts_the_reference_in_the_middle():
    """Point 2 in (1, 3) around 0 reaches 1.25 * 3 to both sides: 0 stands at 50%, 3 at 50 + 40 = 90%."""
    track = Track.around(2, 1, 3, reference=0)
    assert track.percent(0) == 50
    assert track.percent(3) == 90
    assert track.percent(99) == 100


def test_anchors():
    assert Section("What the judge is, and is not", ()).anchor == "what-the-judge-is-and-is-not"


def test_settings_table_flattens_sections():
    class Inner(Frozen):
        steps: int = 3
        names: tuple[str, ...] = ("a", "b")

    class Outer(Frozen):
        inner: Inner = Inner()
        adapter: str = ""
        flip: bool = False

    rows = settings_table(Outer()).rows
    assert rows == (("inner.steps", "3"), ("inner.names", "a, b"), ("adapter", "none"), ("flip", "no"))


def test_the_first_difference_is_named_with_both_values():
    """Keys that are set aside may differ; a key that only one side has is None on the other."""
    before, now = {"a": {"x": 1, "y": 2}, "gone": 0}, {"a": {"x": 1, "y": 3}, "new": 4}
    assert first_difference(before, before) is None
    assert first_difference(before, now) == ("a.y", 2, 3)
    assert first_difference(before, now, ("a.y",)) == ("new", None, 4)
    assert first_difference(before, now, ("a.y", "new")) == ("gone", 0, None)
