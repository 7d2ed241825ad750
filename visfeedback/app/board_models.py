"""Which model wins, as the Leaderboard shows it: from votes to sentences, a figure and tables.

Names stay hidden until somebody asks: whoever judges should not know what is ahead. May import: store, preferences,
report, its neighbours.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from scipy.special import expit

from visfeedback.app import board_html as html
from visfeedback.preferences.bradley_terry import Fit, fit
from visfeedback.preferences.leaderboard import MOST_MODELS, BothBad, leaderboard, win_rates
from visfeedback.preferences.votes import votes
from visfeedback.report import plots
from visfeedback.report.blocks import Figures, Table
from visfeedback.store import Store
from visfeedback.types.records import Feedback

Who = Literal["people", "programs", "everybody"]
PEOPLE = ("human:", "import:")
"""beginnings of judges that are people; the others are programs and models, which nobody should mix in unasked"""
FEW = 30
"""votes below which nothing is said about who is ahead"""
MOST_TIMES = 50
"""a forecast beyond so many times the votes there are is no forecast"""
Z = 1.96
TO_DO = "Train a run and let people compare it blindly, or start with visfeedback collect --adapter."


@dataclass(frozen=True)
class Board:
    """The standing of a collection."""

    rows: list[dict[str, Any]]
    """best first, as `preferences.leaderboard` gives them"""
    rates: dict[str, dict[str, dict[str, float | None]]]
    bad: dict[str, dict[str, Any]]
    fitted: Fit | None
    votes: int = 0
    judges: int = 0
    prompts: int = 0
    models: int = 0


def board(feedback: Iterable[Feedback], maker: Mapping[str, str], resamples: int = 500, seed: int = 0) -> Board:
    """One pass over standing feedback; ``maker``: sample id -> who made it."""
    bad = BothBad(maker)

    def seen() -> Iterable[Feedback]:
        for record in feedback:
            bad.add(record)
            yield record

    found = votes(seen(), maker)
    if not len(found) or len(found.models) > MOST_MODELS:
        return Board([], {}, {}, None, len(found), models=len(found.models))
    fitted = fit(found, resamples, seed=seed)
    return Board(
        leaderboard(found, fitted), win_rates(found), bad.summary(), fitted, len(found),
        len(set(found.judge.tolist())), len(set(found.prompt.tolist())), len(found.models),
    )  # fmt: skip


def chosen(records: Iterable[Feedback], who: Who) -> Iterable[Feedback]:
    """The feedback of people, of programs, or all."""
    for record in records:
        if who == "everybody" or record.judge.startswith(PEOPLE) == (who == "people"):
            yield record


class Boards:
    """Boards of a store, made again only when something was said since; safe from several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._count = -1
        self._made: dict[Who, Board] = {}

    def __call__(self, who: Who) -> Board:
        with self._lock:
            now = self.store.feedback_count()
            if now != self._count:
                self._made, self._count = {}, now
            if who not in self._made:
                self._made[who] = board(chosen(self.store.feedback(), who), dict(self.store.sources()))
            return self._made[who]


# names


def aliases(models: Iterable[str], secret: str) -> dict[str, str]:
    """model -> `Model A`, ...: letters that follow from the store's secret, not from rank or alphabet."""
    order = sorted(models, key=lambda name: hashlib.sha256(f"{secret}\0{name}".encode()).hexdigest())
    return {name: f"Model {_letters(place)}" for place, name in enumerate(order)}


def _letters(number: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    tail = chr(ord("A") + number % 26)
    return tail if number < 26 else _letters(number // 26 - 1) + tail


def short_names(models: Iterable[str]) -> dict[str, str]:
    """model -> a name for people: an adapter by the folder that tells it from others."""
    whole = list(models)
    short = {name: _short(name) for name in whole}
    twice = {word for word in short.values() if list(short.values()).count(word) > 1}
    return {name: name if short[name] in twice else short[name] for name in whole}


def _short(name: str) -> str:
    model, plus, adapter = name.partition("+")
    if not plus:
        return name
    telling = [part for part in PurePath(adapter).parts if part not in ("adapter", "run", "/")]
    return f"{model} + {telling[-1]}" if telling else name


# in words


def sentence(found: Board, name: Callable[[str], str]) -> tuple[str, str]:
    """(tone, who is ahead, as far as the votes can tell)."""
    basis = f"{found.votes:,} votes of {_many(found.judges, 'judge')} on {_many(found.prompts, 'prompt')}"
    if found.models > MOST_MODELS:
        return "plain", f"{found.models:,} models are too many to rank; at most {MOST_MODELS}."
    if found.models < 2 or found.fitted is None:
        return "plain", f"No votes between two models yet. {TO_DO}"
    first, second = found.rows[0]["model"], found.rows[1]["model"]
    if found.votes < FEW:
        return "plain", f"Too few votes to say who is ahead: {basis}; about {FEW} say a little, some hundreds a lot."
    gap, sure = _gap(found.fitted, first, second)
    if gap > sure:
        return "good", f"{name(first)} is ahead of {name(second)}: {basis}."
    return (
        "plain",
        f"No winner yet: {name(first)} and {name(second)} may be equal. {basis}.{_forecast(found, gap, sure)}",
    )


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _gap(fitted: Fit, first: str, second: str) -> tuple[float, float]:
    """How far apart two models are (logits), and half the 95% interval of that difference."""
    i, j = fitted.models.index(first), fitted.models.index(second)
    c = fitted.covariance
    return float(fitted.strength[i] - fitted.strength[j]), Z * float(np.sqrt(max(c[i, i] + c[j, j] - 2 * c[i, j], 0)))


def _forecast(found: Board, gap: float, sure: float) -> str:
    """How many more votes might settle it: an interval shrinks with the root of the votes."""
    times = (sure / gap) ** 2 if gap > 0 else float("inf")
    if times > MOST_TIMES:
        return ""
    more = max(10, round(found.votes * (times - 1), -1))
    return f" If the gap is what it looks like, about {more:,.0f} more votes settle it."


# drawn


def shown(found: Board, name: Callable[[str], str]) -> str:
    """Sentence, figure and tables as HTML."""
    tone, said = sentence(found, name)
    if not found.rows:
        return html.page(html.say(said, tone))
    return html.page(html.say(said, tone), html.drawn(figure(found, name), standing(found, name), matrix(found, name)))


def figure(found: Board, name: Callable[[str], str]) -> Figures:
    """The chance of each model to beat the mean model: strengths as people read them."""
    groups = {
        name(row["model"]): {"tuned": plots.Rate(*(float(expit(x)) for x in (row["strength"], *row["ci95"])))}
        for row in found.rows
    }
    caption = (
        "Bradley-Terry strengths with 95% intervals that count people and prompts, not only votes; 50% is the mean."
    )
    return Figures((plots.rates("leaderboard", "Chance to beat an average model", groups, caption=caption),))


def standing(found: Board, name: Callable[[str], str]) -> Table:
    rows = []
    for row in found.rows:
        low, high = row["elo_ci95"]
        bad = found.bad.get(row["model"], {}).get("share")
        rows.append((
            f"{row['rank']}. {name(row['model'])}", f"{row['elo']:.0f}", f"{low:.0f} to {high:.0f}",
            *(f"{row[key]:.4g}" for key in ("wins", "ties", "losses")), "-" if bad is None else f"{bad:.0%}",
        ))  # fmt: skip
    head = ("Model", "Elo", "95% interval", "Wins", "Ties", "Losses", "Both bad")
    return Table(
        head, tuple(rows), "Rank counts the models that are certainly ahead: equal ranks cannot be told apart."
    )


def matrix(found: Board, name: Callable[[str], str]) -> Table:
    """How often the model of the row beat the model of the column; ties are half a win."""
    order = [row["model"] for row in found.rows]
    rows = [(name(one), *(_cell(found.rates.get(one, {}).get(other)) for other in order)) for one in order]
    return Table(("Row beats column", *map(name, order)), tuple(rows), "Win rates, and how many votes each is from.")


def _cell(entry: dict[str, float | None] | None) -> str:
    if entry is None or entry["rate"] is None:
        return "-"
    return f"{entry['rate']:.0%} ({entry['n']:.4g})"
