"""The page of a run of rounds: numbers, lines over the rounds, tables, pictures. May import: report, types."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from visfeedback.loops._journal import Round
from visfeedback.loops._rounds_pictures import sheet, strip
from visfeedback.loops._rounds_summary import MEASURES
from visfeedback.report import plots
from visfeedback.report.blocks import Command, Figures, Gallery, Number, Section, Table, Tile, Track
from visfeedback.report.grids import data_uri
from visfeedback.report.lines import lines
from visfeedback.report.page import Page, write_page
from visfeedback.types.files import write_atomic

if TYPE_CHECKING:
    from visfeedback.loops.fabric_rounds import Settings

SHOWN = 12  # prompts with pictures
TARGET = "images/target/{}.png"
STRIP = "rounds.jpg"
STRIP_ROWS = 4
STRIP_BYTES = 60_000
"""a picture that a README may carry"""
TITLES = {
    "preference": "Preference of the user",
    "met": "Share of images that meet the wish",
    "best_so_far": "Best image so far",
    "right": "Share of images that are right, as the prompt says",
    "from_target": "Distance from the hidden image (RMS of pixels; lower is nearer)",
    "to_liked": "Likeness to what was liked (cosine)",
    "to_disliked": "Likeness to what was disliked (cosine)",
    "diversity": "Diversity (RMS difference between a round's images)",
    "alike": "Likeness of a round's images to each other (cosine; higher = less diverse)",
}
ARMS = {"fabric": "FABRIC", "none": "no feedback", "best_of_n": "best of N", "prompt_dropout": "prompt dropout"}
DRAWN = ("preference", "best_so_far", "right", "from_target", "diversity")


def write(out: Path, rows: Sequence[Round], summary: dict[str, Any], settings: Settings) -> Path:
    """report.html, and rounds.jpg: the same pictures in a strip for a README."""
    galleries = _galleries(out, rows)
    sections = [
        Section("Round by round", (_figures(summary),), "Means over prompts; their intervals are in the tables below."),
        Section("Pictures", tuple(galleries), _pictures_lead(settings)),
        Section(
            "All numbers", tuple(_table(summary, name) for name in MEASURES if _has(summary, name)), _lead(summary)
        ),
        Section("Run it again", (Command(summary["command"]),)),
    ]
    title = f"FABRIC in {summary['rounds']} rounds on {settings.model.id}"
    about = (
        f"{summary['n_prompts']} prompts, {summary['images_per_round']} images a round; each round the user "
        f"({_who(settings)}) likes {settings.loop.likes} and dislikes {settings.loop.dislikes}."
    )
    page = Page(title, [s for s in sections if s.blocks], "visfeedback loop", about, _numbers(summary))
    _write_strip(out, rows)
    return write_page(out / "report.html", page)


def _who(settings: Settings) -> str:
    user = settings.user
    return {
        "tastes": "tastes: " + ", ".join(user.tastes),
        "target": f"a hidden image of each prompt, compared by {user.name}",
        "reward": f"the reward {user.name}",
        "verifier": f"the verifier of {user.name}",
    }[user.kind]


def _pictures_lead(settings: Settings) -> str:
    shown = f" The first {SHOWN} prompts." if len(settings.data.prompts) > SHOWN else ""
    return f"All images of FABRIC's rounds. Green frame: liked; red frame with a stroke: disliked.{shown}"


def _has(summary: dict[str, Any], name: str) -> bool:
    return any(rounds[-1][name] is not None for rounds in summary["arms"].values())


def _lead(summary: dict[str, Any]) -> str:
    return f"Means over {summary['n_prompts']} prompts with 95% intervals in which the prompt is the unit."


def _figures(summary: dict[str, Any]) -> Figures:
    """A line for each arm."""
    made = []
    for name in DRAWN:
        series = {
            ARMS[arm]: [(number, found[name][0]) for number, found in enumerate(rounds)]
            for arm, rounds in summary["arms"].items()
            if all(found[name] is not None for found in rounds)
        }
        if series:
            made.append(lines(f"rounds-{name}", TITLES[name], series, "round", ""))
    met = _met(summary)
    return Figures((*made, met) if met else tuple(made))


def _met(summary: dict[str, Any]) -> Any:
    """The share that meets the wish, FABRIC beside no feedback, with intervals."""
    groups = {
        f"round {number}": {
            side: plots.Rate(*summary["arms"][arm][number]["met"])
            for side, arm in (("base", "none"), ("tuned", "fabric"))
            if arm in summary["arms"]
        }
        for number in range(summary["rounds"])
    }
    caption = "Diamonds: FABRIC; dots: no feedback; lines: 95% intervals."
    return plots.rates("rounds-met", TITLES["met"], groups, caption=caption) if any(groups.values()) else None


def _table(summary: dict[str, Any], name: str) -> Table:
    head = ("arm", *(f"round {number}" for number in range(summary["rounds"])))
    rows = tuple(
        (ARMS[arm], *(_cell(numbers[name]) for numbers in rounds))
        for arm, rounds in summary["arms"].items()
        if rounds[-1][name] is not None
    )
    return Table(head, rows, caption=TITLES[name])


def _cell(value: list[float] | None) -> str:
    return "" if value is None else f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"


def _numbers(summary: dict[str, Any]) -> tuple[Number, ...]:
    made = []
    for arm, gains in summary["gain_in_last_round"].items():
        if gains["preference"] is not None:
            value, low, high = gains["preference"]
            interval = f"95% interval {low:+.3f} to {high:+.3f}"
            tone = "good" if low > 0 else "bad" if high < 0 else "plain"
            label = f"Preference, FABRIC over {ARMS[arm]}"
            track = Track.around(value, low, high, 0.0)
            made.append(Number(label, f"{value:+.3f}", interval=interval, note="last round", tone=tone, track=track))
    return tuple(made)


def _galleries(out: Path, rows: Sequence[Round]) -> list[Gallery]:
    made = []
    for history in _histories(rows)[:SHOWN]:
        tiles = [_target_tile(history[0], target)] if (target := _target(out, history[0])) else []
        for row in history:
            mean = sum(row.preferences) / len(row.preferences)
            words = f"round {row.round} of {row.prompt!r}, {len(row.liked)} liked and {len(row.disliked)} disliked"
            tiles.append(Tile(data_uri(_sheet(out, row)), words, f"round {row.round}", f"preference {mean:.2f}"))
        made.append(Gallery(tuple(tiles), history[0].prompt))
    return made


def _histories(rows: Sequence[Round]) -> list[list[Round]]:
    """FABRIC's rounds of each prompt, in order."""
    by_prompt: dict[str, list[Round]] = {}
    for row in sorted(rows, key=lambda row: row.round):
        if row.arm == "fabric":
            by_prompt.setdefault(row.prompt_id, []).append(row)
    order = list(dict.fromkeys(row.prompt_id for row in rows if row.arm == "fabric"))
    return [by_prompt[prompt_id] for prompt_id in order]


def _target(out: Path, row: Round) -> Image.Image | None:
    file = out / TARGET.format(row.prompt_id)
    return _opened(file) if file.is_file() else None


def _target_tile(row: Round, target: Image.Image) -> Tile:
    return Tile(data_uri(target), f"hidden image of {row.prompt!r}", "hidden image", "what the user has in mind",
                pixelated=True)  # fmt: skip


def _sheet(out: Path, row: Round) -> Image.Image:
    marks = [(name in row.liked) - (name in row.disliked) for name in row.files]
    return sheet([_opened(out / name) for name in row.files], marks)


def _write_strip(out: Path, rows: Sequence[Round]) -> None:
    lines_of: list[tuple[str, list[Image.Image]]] = []
    headings: list[str] = []
    for history in _histories(rows)[:STRIP_ROWS]:
        target = _target(out, history[0])
        pictures = ([target] if target else []) + [_sheet(out, row) for row in history]
        headings = (["hidden image"] if target else []) + [f"round {row.round}" for row in history]
        lines_of.append((history[0].prompt, pictures))
    if lines_of:
        write_atomic(out / STRIP, _jpeg(strip(lines_of, headings), STRIP_BYTES))


def _jpeg(image: Image.Image, most: int) -> bytes:
    """As good as fits into ``most`` bytes."""
    buffer = io.BytesIO()
    for quality in range(90, 20, -10):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= most:
            break
    return buffer.getvalue()


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
