"""How people judge, as the Data tab shows it: agreement, sides, speed, consistency, gold items, the newest answers.

Functions from a store to HTML. May import: store, preferences, report, its neighbours.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from visfeedback.app import board_html as html
from visfeedback.app.rounds import CRITERION
from visfeedback.preferences.agreement import Answers
from visfeedback.preferences.quality import People
from visfeedback.report.blocks import Card, Cards, Number, Numbers, Picture, Table
from visfeedback.store import Store
from visfeedback.store.tables import feedback
from visfeedback.types.records import Feedback, Sample

RECENT = 12
FLAGS = {
    "side": "prefers one side", "hasty": "faster than one can look", "row": "the same side many times in a row",
    "gold": "misses known answers",
}  # fmt: skip
AGREEMENT = {
    "items": "Pairs judged by two or more", "judgements": "Judgements of them", "percent": "Equal answers",
    "alpha": "Krippendorff's alpha", "alpha_ordinal": "Alpha, ties between the sides", "fleiss": "Fleiss' kappa",
    "cohen_mean": "Cohen's kappa, mean over pairs of people",
}  # fmt: skip
PLURALS = {"best": "best of several", "words": "word marks", "region": "region marks"}
MARKS = {"tie": "a tie", "both_bad": "both bad", "skip": "skipped", "flag": "flagged"}


@dataclass(frozen=True)
class Overview:
    """Everything but pictures."""

    people: dict[str, Any]
    with_ties: dict[str, Any]
    decided: dict[str, Any]
    kinds: dict[str, int] = field(default_factory=dict)
    choices: dict[str, int] = field(default_factory=dict)


def overview(store: Store) -> Overview:
    """One pass over standing feedback."""
    people, with_ties, decided = People(), Answers(), Answers(ties=False)
    kinds, choices = Counter[str](), Counter[str]()
    for record in store.feedback():
        kinds[record.kind] += 1
        choices[record.choice or ""] += 1
        for listener in (people, with_ties, decided):
            listener.add(record)
    return Overview(people.summary(), with_ties.summary(), decided.summary(), dict(kinds), dict(choices))


class Overviews:
    """The overview of a store, made again only when something was said since; safe from several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._count, self._made = -1, Overview({}, {}, {})

    def __call__(self) -> Overview:
        with self._lock:
            now = self.store.feedback_count()
            if now != self._count:
                self._made, self._count = overview(self.store), now
            return self._made


def shown(found: Overview) -> str:
    """Numbers, agreement, and a row for each judge."""
    if not found.kinds:
        return html.page(html.say("Nothing has been judged yet."))
    tables = [table for table in (agreement(found), judges(found)) if table.rows]
    return html.page(html.drawn(Numbers(_headlines(found)), *tables), _alone(found))


def _headlines(found: Overview) -> tuple[Number, ...]:
    answered = {name: found.choices.get(name, 0) for name in ("a", "b", "tie", "both_bad")}
    pairs, ties = sum(answered.values()), answered["tie"] + answered["both_bad"]
    left, alpha = found.people["left"], found.with_ties["alpha"]
    return (
        Number("Answers", f"{sum(found.kinds.values()):,}", note=_kinds(found.kinds)),
        Number("Left image preferred", _percent(left["share"]), interval=_interval(left), note="50% is unbiased"),
        Number("Ties", _percent(ties / pairs if pairs else None), note=f"{answered['both_bad']} of them both bad"),
        Number("Agreement (alpha)", "-" if alpha is None else f"{alpha:.2f}",
               note=f"1 perfect, 0 chance; {found.with_ties['items']} pairs were judged by several"),
    )  # fmt: skip


def _kinds(kinds: dict[str, int]) -> str:
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {kind if count == 1 else PLURALS.get(kind, f'{kind}s')}" for kind, count in ordered)


def agreement(found: Overview) -> Table:
    """With ties and without; empty when nobody judged what another judged."""
    if not found.with_ties["items"]:
        return Table((), ())
    rows = tuple(
        (label, _number(found.with_ties[key]), _number(found.decided[key])) for key, label in AGREEMENT.items()
    )
    return Table(("Agreement beyond chance", "All answers", "Without ties"), rows, "A dash is not defined.")


def judges(found: Overview) -> Table:
    """Speed, consistency and known answers of each; numbers flag, they drop nobody."""
    head = ("Judge", "Answers", "Median seconds", "Left", "Same on repeats", "Gold right", "Look at")
    rows = tuple(
        (name, f"{one['answers']:,}", _number(one["median_seconds"]), _share(one["left"]), _share(one["repeats"]),
         _share(one["gold"]), ", ".join(str(FLAGS.get(flag, flag)) for flag in one["flags"]) or "-")
        for name, one in found.people["judges"].items()
    )  # fmt: skip
    return Table(head, rows, "Shares with how many answers they rest on.")


def _alone(found: Overview) -> str:
    """Why there is no agreement to show."""
    if found.with_ties["items"]:
        return ""
    return html.say("No pair was judged by two people yet, so agreement is unknown: set the overlap to 2 or more.")


# the newest answers


def recent(store: Store, count: int = RECENT) -> list[Feedback]:
    """The newest standing feedback, newest first."""
    gone = select(feedback.c.retracts).where(feedback.c.kind == "tombstone")
    query = select(feedback.c.record).where(
        feedback.c.kind != "tombstone", feedback.c.criterion != CRITERION, feedback.c.id.not_in(gone)
    )
    with store.reading() as connection:
        found = connection.scalars(query.order_by(feedback.c.row.desc()).limit(count)).all()
    return [Feedback.model_validate_json(record) for record in found]


def gallery(store: Store, count: int = RECENT, blur: bool = False) -> str:
    """The newest answers with their images as they stood on the screen."""
    records = recent(store, count)
    samples = store.samples_of({name for record in records for name in record.sample_ids})
    cards = tuple(_card(record, samples) for record in records)
    drawn = html.drawn(Cards(cards, "Newest answers")) if cards else ""
    return html.page(f'<div class="vf-blur">{drawn}</div>' if blur and drawn else drawn)


def _card(record: Feedback, samples: dict[tuple[str, str], Sample]) -> Card:
    found = [samples.get((record.prompt_id, name)) for name in record.sample_ids]
    prompt = next((sample.prompt for sample in found if sample), "(prompt unknown)")
    order = sorted(range(len(found)), key=lambda i: record.sides[i] if record.sides else i)
    pictures = [picture for i in order if (picture := _picture(record, i, found[i])) is not None]
    seconds = "" if record.seconds is None else f", {record.seconds:.1f} s"
    return Card(prompt, tuple(pictures), f"{_said(record)} by {record.judge}{seconds}")


def _said(record: Feedback) -> str:
    if record.kind == "pair":
        return MARKS.get(record.choice or "", "chosen")
    if record.kind == "like" and record.values:
        return "liked" if record.values[0] > 0 else "disliked"
    return record.kind


def _picture(record: Feedback, place: int, sample: Sample | None) -> Picture | None:
    if sample is None or not sample.path:
        return None
    won = record.kind == "pair" and record.choice == ("a", "b")[place]
    value = record.values[place] if place < len(record.values) and record.kind not in ("pair", "like") else None
    mark = "chosen" if won else "" if value is None else _worth(record.kind, value)
    alt = f"{sample.prompt}{', chosen' if won else ''}"
    return html.shown(Path(sample.path), alt, mark=mark, tone="plain")


def _worth(kind: str, value: float) -> str:
    """What was said of one image of several."""
    if kind == "ranking":  # records count ranks from 0, the screen counts places from 1
        return f"place {value + 1:g}"
    if kind == "best":
        return "chosen" if value else ""
    return f"{value:g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _interval(part: dict[str, Any]) -> str:
    if not part["ci95"]:
        return ""
    low, high = part["ci95"]
    return f"95% interval {low:.0%} to {high:.0%}, n = {part['n']:,}"


def _share(part: dict[str, Any]) -> str:
    return "-" if part["share"] is None else f"{part['share']:.0%} of {part['n']:,}"


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
