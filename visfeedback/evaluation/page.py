"""The page about a comparison: what changed, by how much, how sure, and what it looks like.

``build`` makes all of it, ``sections`` its body. Examples are drawn by chance, never chosen.
May import: types, report.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel

from visfeedback.evaluation.outcomes import CHANGES, Outcome
from visfeedback.evaluation.words import about, certainty, difference, duration, headline, minus, percent, verdict
from visfeedback.report import plots
from visfeedback.report.blocks import (
    Block,
    Card,
    Cards,
    Command,
    Figures,
    Number,
    Section,
    Share,
    Shares,
    Table,
    Text,
    Tone,
    Track,
)
from visfeedback.report.grids import before_after
from visfeedback.report.page import Page
from visfeedback.report.tables import settings_table

PER_CHANGE, PER_CATEGORY = 6, 3
"""Examples shown of what was mended and of what was broken, and of each category."""


def numbers(summary: dict[str, Any]) -> list[Number]:
    """The big numbers at the top: difference, both accuracies, win rate, time."""
    items: list[Number] = []
    if summary["delta"] is not None:
        items.append(_delta_number(summary))
    base, tuned = summary["base"]["accuracy"], summary["tuned"]["accuracy"]
    if base is not None:
        images = summary["n_prompts"] * summary["images_per_prompt"]
        items.append(Number("Fully right, tuned", percent(tuned), interval=f"base {percent(base)}",
                            note=f"{images} images a side, categories weigh the same"))  # fmt: skip
    if summary["win_rate"] is not None:
        items.append(_win_number(summary))
    first = f" in the first of up to {several} processes" if (several := summary.get("processes", 1)) > 1 else ""
    memory = f"{summary['peak_mib'] / 1024:.1f} GiB at most{first}"
    items.append(Number("Time", duration(summary["seconds"]), interval=memory, note=f"seed {summary['seed']}"))
    return items


def _delta_number(summary: dict[str, Any]) -> Number:
    low, high = summary["delta_ci95"] or (-math.inf, math.inf)
    tone: Tone = "good" if low > 0 else "bad" if high < 0 else "plain"
    value = difference(summary, summary["delta"])
    track = Track.around(summary["delta"], low, high, reference=0.0) if summary["delta_ci95"] else None
    points = value.endswith(" points")
    return Number(f"Tuned minus base, {summary['delta_of']}", value.removesuffix(" points"), "points" if points else "",
                  certainty(summary), "the tick marks no difference" if track else "", tone, track)  # fmt: skip


def _win_number(summary: dict[str, Any]) -> Number:
    track, sure = None, "no interval from one prompt"
    if summary["win_rate_ci95"] is not None:
        low, high = summary["win_rate_ci95"]
        track, sure = (Track.around(summary["win_rate"], low, high, reference=0.5),
                       f"95% interval {100 * low:.1f} to {percent(high)}")  # fmt: skip
    return Number("Win rate against base", percent(summary["win_rate"]), interval=sure,
                  note=f"judge {summary['judge']}, ties count half", track=track)  # fmt: skip


def build(
    outcomes: Sequence[Outcome], summary: dict[str, Any], folder: Path, settings: BaseModel, eyebrow: str, about: str,
    learned: Section | None = None,
) -> Page:  # fmt: skip
    """The whole page. ``folder`` holds the pictures; ``learned`` is an optional section on how training went."""
    body = sections(outcomes, summary, folder)
    if learned is not None:
        body.insert(2 if summary["changes"] else 1, learned)
    body.append(Section("Settings", (settings_table(settings),)))
    body.append(Section("Do it again", (Command(summary["command"], "The same command with the same seed draws the "
                                                "same pictures; give it another `--out`."),)))  # fmt: skip
    return Page(headline(summary), body, eyebrow, about, numbers(summary))


def sections(outcomes: Sequence[Outcome], summary: dict[str, Any], folder: Path) -> list[Section]:
    """What changed, pictures, other measures, and how it was measured; ``folder`` holds the pictures."""
    found = [_changes(summary)] if summary["changes"] else []
    found.append(_pictures(outcomes, folder, summary["seed"]))
    found.append(_beside(summary))
    found.append(_limits(summary))
    return found


# ------------------------------------------------------------------------------------------------- what changed


def _changes(summary: dict[str, Any]) -> Section:
    changes = summary["changes"]
    total = sum(changes.values())
    lead = (
        f"Each of {total} pairs is one prompt and one seed, drawn by the base model and by the tuned one. "
        f"Tuning mended {changes['mended']} pictures and broke {changes['broken']}."
    )
    looks: dict[str, tuple[Tone, bool]] = {"mended": ("good", True), "still right": ("good", False),
                                           "still wrong": ("plain", False), "broken": ("bad", True)}  # fmt: skip
    shares = Shares(tuple(Share(name, changes[name], *looks[name]) for name in CHANGES))
    return Section("What changed", (shares, Figures(_rate_figures(summary)), _category_table(summary)), lead)


def _rate_figures(summary: dict[str, Any]) -> tuple[Any, ...]:
    sides = ("base", "tuned")
    by_category = {
        category: {side: _rate(summary[side]["per_category"][category]) for side in sides}
        for category in summary["base"]["per_category"]
    }
    legend = "Circle and grey: base. Diamond and green: tuned. Lines are 95% intervals."
    figures = [plots.rates("categories", "Fully right by category", by_category, caption=legend)]
    aspects = {
        name: {side: _point(summary[side]["aspects"][name]["rate"]) for side in sides}
        for name in summary["base"]["aspects"]
    }
    if aspects:
        counted = "Among the images whose prompt speaks of the aspect."
        figures.append(plots.rates("aspects", "Right by aspect", aspects, caption=counted))
    return tuple(figures)


def _rate(entry: dict[str, Any]) -> plots.Rate:
    return plots.Rate(entry["accuracy"], *entry["ci95"])


def _point(value: float) -> plots.Rate:
    return plots.Rate(value, value, value)


def _category_table(summary: dict[str, Any]) -> Table:
    rows, counts = [], []
    for category, change in summary["delta_per_category"].items():
        base, tuned = (summary[side]["per_category"][category]["accuracy"] for side in ("base", "tuned"))
        points = f"{100 * change['delta']:+.1f}{_bracket(change['ci95'])}"
        rows.append((category.replace("_", " "), percent(base), percent(tuned), minus(points)))
        counts.append(change["n"])
    few, many = min(counts), max(counts)
    each = str(few) if few == many else f"{few} to {many}"
    caption = f"Share of images fully right, {each} images each. In brackets: 95% interval, resampling prompts."
    return Table(("Category", "Base", "Tuned", "Points"), tuple(rows), caption)


def _bracket(interval: list[float] | None) -> str:
    """Points, in brackets that may break before them, not inside; nothing for a category of one prompt."""
    if interval is None:
        return ""
    low, high = interval
    return " " + f"({100 * low:+.1f} to {100 * high:+.1f})".replace(" ", "\N{NO-BREAK SPACE}")


# ----------------------------------------------------------------------------------------------------- pictures


def _pictures(outcomes: Sequence[Outcome], folder: Path, seed: int) -> Section:
    rng = random.Random(seed)
    groups: list[Block] = []
    for change, heading in (("mended", "Mended"), ("broken", "Broken")):
        pool = [o for o in outcomes if o.change == change]
        if pool:
            groups.append(_group(pool, PER_CHANGE, folder, rng, f"{heading}: {_some(pool, PER_CHANGE)}"))
    for category in dict.fromkeys(o.category for o in outcomes):
        pool = [o for o in outcomes if o.category == category]
        name = category.replace("_", " ").capitalize() or "All prompts"
        count = PER_CATEGORY if category else PER_CHANGE
        groups.append(_group(pool, count, folder, rng, f"{name}: {_some(pool, count)}"))
    lead = (
        "Nobody chose these: each group is a draw by chance from all pairs it speaks of, "
        "and the category groups are drawn whatever happened to the picture. "
        f"The draw follows from seed {seed}; all pictures are in the folders `base` and `tuned`."
    )
    return Section("Before and after", tuple(groups), lead)


def _some(pool: Sequence[Outcome], count: int) -> str:
    return f"all {len(pool)}" if len(pool) <= count else f"{count} of {len(pool)}"


def _group(pool: Sequence[Outcome], count: int, folder: Path, rng: random.Random, heading: str) -> Cards:
    drawn = rng.sample(list(pool), min(count, len(pool)))
    return Cards(tuple(_card(outcome, folder) for outcome in drawn), heading)


def _card(outcome: Outcome, folder: Path) -> Card:
    with Image.open(folder / outcome.base.path) as base, Image.open(folder / outcome.tuned.path) as tuned:
        marks = (verdict(outcome.base), verdict(outcome.tuned))
        tag = "" if outcome.change == "unjudged" else outcome.change
        return before_after(outcome.prompt, base, tuned, marks, tag)


# ------------------------------------------------------------------------------------- other measures and limits


def _beside(summary: dict[str, Any]) -> Section:
    rows = [
        (name.replace("_", " "), *_three(summary["base"][kind][name], summary["tuned"][kind][name]))
        for kind in ("rewards", "measures")
        for name in summary["base"][kind]
    ]
    diversity = summary["diversity"]
    if diversity["base"] is not None:
        rows.append(("diversity", *_three(diversity["base"], diversity["tuned"])))
    notes = [f"Drift from the base model: {summary['drift']:.3g}, the mean squared difference of what the two networks "
             "predict from the same noisy picture. 0 is the base model itself."]  # fmt: skip
    if diversity["base"] is not None:
        notes.append("Diversity is the mean pixel difference (RMS, 0 to 1) between images of one prompt: "
                     "a tuned model that draws the same picture again and again would show here.")  # fmt: skip
    if "render_distance" in summary["base"]["measures"]:
        notes.append("Render distance (RMS, 0 to 1) is how far a picture is from a clean drawing of what is seen in "
                     "it: lower is crisper.")  # fmt: skip
    table = Table(("Measure", "Base", "Tuned", "Difference"), tuple(rows), "Means over the same images.")
    lead = "One judge alone can be fooled. These numbers did not decide anything; they are here to show side effects."
    blocks: tuple[Block, ...] = (table, Text(tuple(notes))) if rows else (Text(tuple(notes)),)
    return Section("Beside the judge", blocks, lead)


def _three(base: float, tuned: float) -> tuple[str, str, str]:
    return minus(f"{base:.4g}"), minus(f"{tuned:.4g}"), minus(f"{tuned - base:+.3g}")


def _limits(summary: dict[str, Any]) -> Section:
    paragraphs = [
        f"The judge is `{summary['judge']}`. {about(summary['judge'])}",
        f"Base and tuned drew the same {summary['n_prompts']} prompts with the same seeds, "
        f"{summary['images_per_prompt']} of each, so a pair differs by the adapter alone. A 95% interval comes from "
        "10,000 resamplings of whole prompts: images of one prompt are not independent witnesses.",
        "Where no picture changed at all, the interval has no width: what never happened leaves nothing to resample. "
        "Categories of a single prompt are resampled from each other, and one prompt alone has no interval.",
        "The interval speaks about other prompts of this kind. It does not cover another training run; for that, "
        "run again with another `--seed`.",
    ]
    return Section("What the judge is, and is not", (Text(tuple(paragraphs)),))
