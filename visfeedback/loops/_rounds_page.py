"""The page of a run of rounds: numbers, tables by round, pictures. May import: report, types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from visfeedback.loops._journal import Round
from visfeedback.loops._rounds_summary import MEASURES
from visfeedback.report import plots
from visfeedback.report.blocks import Card, Cards, Command, Figures, Number, Section, Table, Track
from visfeedback.report.grids import picture
from visfeedback.report.page import Page, write_page

if TYPE_CHECKING:
    from visfeedback.loops.fabric_rounds import Settings

SHOWN = 12  # prompts with pictures
TITLES = {
    "preference": "Preference of the user",
    "met": "Share of images that meet the wish",
    "best_so_far": "Best image so far",
    "right": "Share of images that are right, as the prompt says",
    "to_liked": "Likeness to what was liked (cosine)",
    "to_disliked": "Likeness to what was disliked (cosine)",
    "diversity": "Diversity (RMS difference between a round's images)",
}


def write(out: Path, rows: Sequence[Round], summary: dict[str, Any], settings: Settings) -> Path:
    sections = [
        Section("Round by round", (_figures(summary),), "Diamonds: FABRIC; dots: no feedback; lines: 95% intervals."),
        Section(
            "All numbers", tuple(_table(summary, name) for name in MEASURES if _has(summary, name)), _lead(summary)
        ),
        Section(
            "Pictures", (Cards(tuple(_cards(out, rows))),), "FABRIC: one image of each round, all of one seed a round."
        ),
        Section("Run it again", (Command(summary["command"]),)),
    ]
    title = f"FABRIC in {summary['rounds']} rounds on {settings.model.id}"
    about = (
        f"{summary['n_prompts']} prompts, {summary['images_per_round']} images a round; each round the user "
        f"({summary['user']}) likes {settings.loop.likes} and dislikes {settings.loop.dislikes}."
    )
    page = Page(title, [s for s in sections if s.blocks], "visfeedback loop", about, _numbers(summary))
    return write_page(out / "report.html", page)


def _has(summary: dict[str, Any], name: str) -> bool:
    return any(rounds[-1][name] is not None for rounds in summary["arms"].values())


def _lead(summary: dict[str, Any]) -> str:
    return f"Means over {summary['n_prompts']} prompts with 95% intervals in which the prompt is the unit."


def _figures(summary: dict[str, Any]) -> Figures:
    """Measures that are shares, FABRIC beside no feedback."""
    made = []
    for name in ("preference", "met", "best_so_far", "right"):
        groups = {
            f"round {number}": {
                side: plots.Rate(*summary["arms"][arm][number][name])
                for side, arm in (("base", "none"), ("tuned", "fabric"))
                if arm in summary["arms"] and summary["arms"][arm][number][name] is not None
            }
            for number in range(summary["rounds"])
        }
        if any(groups.values()) and all(0 <= rate.value <= 1 for g in groups.values() for rate in g.values()):
            made.append(plots.rates(f"rounds-{name}", TITLES[name], groups))
    return Figures(tuple(made))


def _table(summary: dict[str, Any], name: str) -> Table:
    head = ("arm", *(f"round {number}" for number in range(summary["rounds"])))
    rows = tuple(
        (arm.replace("_", " "), *(_cell(numbers[name]) for numbers in rounds))
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
            label = f"Preference, FABRIC over {arm.replace('_', ' ')}"
            track = Track.around(value, low, high, 0.0)
            made.append(Number(label, f"{value:+.3f}", interval=interval, note="last round", tone=tone, track=track))
    return tuple(made)


def _cards(out: Path, rows: Sequence[Round]) -> list[Card]:
    cards = []
    for prompt_id in list(dict.fromkeys(row.prompt_id for row in rows))[:SHOWN]:
        rounds = sorted((r for r in rows if (r.prompt_id, r.arm) == (prompt_id, "fabric")), key=lambda r: r.round)
        pictures = []
        for row in rounds:
            mean = sum(row.preferences) / len(row.preferences)
            with Image.open(out / row.files[0]) as image:
                words = f"round {row.round}, {row.prompt!r}"
                pictures.append(picture(image, words, f"round {row.round}", f"preference {mean:.2f}"))
        if pictures:
            cards.append(Card(rounds[0].prompt, tuple(pictures)))
    return cards
