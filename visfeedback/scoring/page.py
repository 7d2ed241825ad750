"""The page about a table of scores: numbers, histograms, and galleries from best to worst.

May import: types, report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL.Image import Image
from scipy import stats

from visfeedback.report import plots
from visfeedback.report.blocks import Block, Command, Figures, Gallery, Number, Picture, Section, Table, Text, Tile
from visfeedback.report.grids import PIXEL_ART, data_uri
from visfeedback.report.page import Page
from visfeedback.scoring.decode import BadImage, decode
from visfeedback.scoring.sources import Source
from visfeedback.scoring.summary import Extreme, Summary
from visfeedback.scoring.work import Identity

SHOWN = 14
"""Pictures in each of the three groups of a gallery: best, evenly through the ranks, worst."""
LISTED = 100
"""Failures shown; all are in OUT.failed.jsonl."""


@dataclass(frozen=True)
class Results:
    """What the page shows."""

    summary: Summary
    identities: Sequence[Identity]
    labels: Sequence[str]
    """of the rewards, in the order they were asked for"""
    measures: dict[str, str]
    """label -> what it measures"""
    command: str
    out: str
    failed: Sequence[dict[str, Any]] = ()
    notes: Sequence[str] = ()
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def seen(self) -> list[str]:
        """Labels of rewards that gave any score."""
        return [label for label in self.labels if label in self.summary.columns]


def build(results: Results, source: Source, max_megapixels: float) -> Page:
    """The whole page; pictures are read from ``source`` again."""
    summary = results.summary
    galleries = {label: _gallery(summary, label) for label in results.seen}
    wanted = {(one.image, one.sha256) for groups in galleries.values() for _, rows in groups for one in rows}
    pictures = _pictures(source, wanted, max_megapixels)
    sections = [_scores(results)] if results.seen else []
    sections += [_section(results, label, galleries[label], pictures) for label in results.seen]
    sections += [section for section in (_agreement(results), _failures(results)) if section is not None]
    sections.append(Section("Where the numbers come from", (_origins(results), *_notes(results))))
    again = "Scores that are in the table are kept and not computed again."
    sections.append(Section("Do it again", (Command(results.command, again),)))
    return Page(_title(results), sections, "visfeedback score", _about(results), _numbers(results))


def _title(results: Results) -> str:
    images, rewards = results.summary.contents, len(results.seen)
    return f"{_count(images, 'image')} scored by {_count(rewards, 'reward')}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _about(results: Results) -> str:
    prompts = [prompt for prompt in results.summary.prompts if prompt is not None]
    against = f" against {_count(len(prompts), 'prompt')}" if prompts else ""
    return (
        f"{_count(len(results.summary.images), 'picture')}{against}, {_count(results.summary.rows, 'score')} in "
        f"`{results.out}`. Higher is better; every reward has its own scale, so compare pictures within a reward, not "
        "rewards with each other."
    )


def _numbers(results: Results) -> list[Number]:
    """The mean of each reward, and what failed."""
    found = []
    for label in results.seen[:3]:
        one = results.summary.of(label, results.bounds.get(label, (-np.inf, np.inf)))
        note = _count(int(one["n"]), "score")  # type: ignore[arg-type]
        found.append(Number(f"Mean {label}", _short(one["mean"]), interval=_between(one["ci95"]), note=note))
    if results.failed:
        found.append(Number("Failed", f"{len(results.failed):,}", note="listed below", tone="bad"))
    return found


def _short(value: Any) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _between(ends: Any) -> str:
    low, high = ends
    gap = "\N{NO-BREAK SPACE}"
    return f"95% interval {_short(low)}{gap}to{gap}{_short(high)}" if np.isfinite([low, high]).all() else ""


# ------------------------------------------------------------------------------------------------- numbers and plots


def _scores(results: Results) -> Section:
    figures, rows = [], []
    for number, label in enumerate(results.seen):
        one = results.summary.of(label, results.bounds.get(label, (-np.inf, np.inf)))
        low, high = one["ci95"]  # type: ignore[misc]
        figures.append(plots.histogram(
            f"histogram-{number}", label, list(results.summary.columns[label].scores), mean=float(one["mean"]),  # type: ignore[arg-type]
            low=low, high=high, caption=results.measures.get(label, ""),
        ))  # fmt: skip
        cells = [_short(one[key]) for key in ("mean", "std", "min", "median", "max")]
        sure = _between(one["ci95"]).removeprefix("95% interval ") or "one only"
        rows.append((label, f"{one['n']:,}", cells[0], sure, *cells[1:]))
    head = ("Reward", "Scores", "Mean", "95% interval", "Deviation", "Least", "Median", "Most")
    caption = (
        "The interval of the mean is about other images of this kind: prompts, or images where they share one prompt, "
        "are taken as drawn by chance."
    )
    lead = "Line: mean. Band: its 95% interval."
    return Section("Scores", (Figures(tuple(figures)), Table(head, tuple(rows), caption)), lead)


def _agreement(results: Results) -> Section | None:
    """Rank correlation of every two rewards over the rows that both have."""
    seen = results.seen
    if len(seen) < 2:
        return None
    rows = []
    for label in seen:
        cells = [_correlation(results.summary, label, other) if other != label else "" for other in seen]
        rows.append((label, *cells))
    lead = "Spearman's rank correlation over the same pictures and prompts: 1 = the same order, 0 = no relation."
    return Section("Do they agree?", (Table(("", *seen), tuple(rows)),), lead)


def _correlation(summary: Summary, one: str, other: str) -> str:
    first, second = (_by_row(summary, label) for label in (one, other))
    both = [key for key in first if key in second]
    if len(both) < 3:
        return "too few"
    pairs = np.array([(first[key], second[key]) for key in both])
    if (pairs == pairs[0]).all(axis=0).any():
        return "constant"
    return _short(round(float(stats.spearmanr(pairs[:, 0], pairs[:, 1])[0]), 3))  # type: ignore[arg-type]


def _by_row(summary: Summary, label: str) -> dict[tuple[int, int], float]:
    column = summary.columns[label]
    return {(i, p): s for i, p, s in zip(column.images, column.prompts, column.scores, strict=True)}


# --------------------------------------------------------------------------------------------------------- galleries


def _gallery(summary: Summary, label: str) -> list[tuple[str, list[Extreme]]]:
    """Headings and rows, from best to worst; all of them when they are few."""
    count = len(summary.columns[label].scores)
    if count <= 3 * SHOWN:
        return [(f"All {count}, best first", summary.ranked(label, range(count)))]
    middle = np.linspace(SHOWN, count - SHOWN - 1, SHOWN).round().astype(int).tolist()
    return [
        (f"Best {SHOWN} of {count:,}", summary.ranked(label, range(SHOWN))),
        (f"{SHOWN} between, evenly through the ranks", summary.ranked(label, middle)),
        (f"Worst {SHOWN}, the worst last", summary.ranked(label, range(count - SHOWN, count))),
    ]


def _section(
    results: Results, label: str, groups: list[tuple[str, list[Extreme]]], pictures: dict[tuple[str, str], Picture]
) -> Section:
    blocks: list[Block] = [Gallery(tuple(_tile(one, pictures) for one in rows), heading) for heading, rows in groups]
    return Section(f"{label}, best to worst", tuple(blocks), _sentence(results.measures.get(label, "")))


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def _tile(one: Extreme, pictures: dict[tuple[str, str], Picture]) -> Tile:
    own = pictures.get((one.image, one.sha256), Picture("", f"{one.image} is gone"))
    note = f"{one.image}, place {one.place + 1}" + (f": {one.prompt}" if one.prompt else "")
    return Tile(own.uri, own.alt, _short(one.score), one.prompt or one.image, note, own.pixelated)


def _pictures(
    source: Source, wanted: Iterable[tuple[str, str]], max_megapixels: float
) -> dict[tuple[str, str], Picture]:
    """(name, sha256) -> its picture. Files that changed or went since are left out."""
    names: dict[str, set[str]] = {}
    for image, sha256 in wanted:
        names.setdefault(image, set()).add(sha256)
    found: dict[tuple[str, str], Picture] = {}
    for item in source.items():
        if item.image not in names or item.error:
            continue
        try:
            data: Any = source.fetch(item.location)()
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 in names[item.image]:
                image = decode(data, max_megapixels)[0]
                found[item.image, sha256] = Picture(_uri(image), item.image, pixelated=max(image.size) <= PIXEL_ART)
        except (BadImage, OSError):
            continue
    return found


def _uri(image: Image) -> str:
    image.draft("RGB", (768, 768))  # JPEG: no more detail than the page shows
    return data_uri(image)


# ------------------------------------------------------------------------------------------------- failures, origins


def _failures(results: Results) -> Section | None:
    if not results.failed:
        return None
    names = [f"{one['image']} ({one['reward']})" if one["reward"] else str(one["image"]) for one in results.failed]
    rows = tuple((name, one["error"]) for name, one in zip(names[:LISTED], results.failed, strict=False))
    more = f"{LISTED} of {len(results.failed):,}; all" if len(results.failed) > LISTED else "All"
    lead = f"{more} are in `{results.out}.failed.jsonl`. The same command tries them again."
    return Section("What failed", (Table(("Image", "Why"), rows, words=True),), lead)


def _origins(results: Results) -> Table:
    rows = tuple((label, _origin(one)) for label, one in zip(results.labels, results.identities, strict=True))
    head = ("Reward", "Model, revision, checkpoint (the table has all 64 digits), precision, preprocessing")
    return Table(head, rows, words=True)


def _origin(one: Identity) -> str:
    known = (one.model, one.revision, one.checkpoint_sha256[:12], one.dtype, one.preprocessing)
    return ", ".join(part for part in known if part)


def _notes(results: Results) -> tuple[Block, ...]:
    return (Text(tuple(results.notes[:LISTED])),) if results.notes else ()
