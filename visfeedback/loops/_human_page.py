"""The page of D3PO with people: numbers of each round, curves, pictures. May import: report, types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from visfeedback.report import plots
from visfeedback.report.blocks import Card, Cards, Command, Figures, Number, Section, Table
from visfeedback.report.grids import picture
from visfeedback.report.page import Page, write_page
from visfeedback.types.files import read_jsonl
from visfeedback.types.records import Sample

if TYPE_CHECKING:
    from visfeedback.loops.human_d3po import Round

HEAD = ("round", "images", "asked", "answered", "ties", "learned", "right", "taste", "loss", "drift", "seconds")
TITLES = {"right": "Share of images that are right, as the prompt says", "taste": "What the person likes besides",
          "drift": "Drift from the model of the start"}  # fmt: skip
PICTURES = 4
"""images of each round that are shown"""


def write(out: Path, rows: Sequence[Round], summary: dict[str, Any]) -> Path:
    """report.html."""
    cells = tuple(tuple(_cell(getattr(row, name)) for name in HEAD) for row in rows)
    sections = [
        Section("Round by round", (_curves(rows), Table(HEAD, cells)), "Images are drawn before a round's learning."),
        Section("Pictures", (Cards(tuple(_cards(out, rows))),), "The first images of each round."),
    ]  # fmt: skip
    if summary["adapter"]:
        sections.append(Section("Go on", (Command(_evaluation(summary)),)))
    if summary["command"]:
        sections.append(Section("Run it again", (Command(summary["command"]),)))
    about = f"{summary['images']} images, {summary['answers']} answers of {summary['who']}."
    title = f"D3PO in {summary['rounds']} rounds on {summary['model']}"
    return write_page(out / "report.html", Page(title, sections, "visfeedback loop", about, _numbers(rows)))


def _evaluation(summary: dict[str, Any]) -> str:
    """What a person would type to see whether it helped."""
    ours = summary["model"].startswith("shapes:")
    prompts = "shapes:heldout:64 --judge verifier:shapes" if ours else "FILE.txt --reward NAME"
    return (
        f"visfeedback evaluate --model {summary['model']} --adapter {summary['adapter']} --prompts {prompts} --out DIR"
    )


def _curves(rows: Sequence[Round]) -> Figures:
    made = []
    for name, title in TITLES.items():
        points = [(row.round, getattr(row, name)) for row in rows if getattr(row, name) is not None]
        if len(points) > 1:
            numbers, values = zip(*points, strict=True)
            made.append(plots.curve(f"rounds-{name}", title, numbers, values))
    return Figures(tuple(made))


def _numbers(rows: Sequence[Round]) -> tuple[Number, ...]:
    found = [
        Number("Answers", str(sum(row.answered for row in rows)), note=f"{sum(r.ties for r in rows)} of them ties")
    ]
    for name in ("right", "taste"):
        first, last = getattr(rows[0], name), getattr(rows[-1], name)
        if first is not None and last is not None:
            found.append(Number(TITLES[name], f"{last:.2f}", note=f"last round; first round {first:.2f}"))
    return tuple(found)


def _cards(out: Path, rows: Sequence[Round]) -> list[Card]:
    cards = []
    for row in rows:
        folder = out / f"round-{row.round}"
        pictures = []
        for sample in list(read_jsonl(folder / "samples.jsonl", Sample))[:PICTURES]:
            with Image.open(folder / sample.path) as image:
                pictures.append(picture(image, f"round {row.round}, {sample.prompt!r}", sample.prompt, ""))
        cards.append(Card(f"round {row.round}", tuple(pictures)))
    return cards


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
