"""Who is ahead: strengths with intervals and the matrix of win rates, as plain numbers for tables and pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from visfeedback.preferences.agreement import Answers
from visfeedback.preferences.bradley_terry import Fit, fit, tables
from visfeedback.preferences.quality import People, share
from visfeedback.preferences.votes import Votes, votes
from visfeedback.types.records import Feedback

ELO = 400 / math.log(10)  # points a logit; 1000 is the mean model
MOST_MODELS = 200  # beyond, "models" are something else, such as one adapter for each image


def leaderboard(found: Votes, fitted: Fit) -> list[dict[str, Any]]:
    """Best first: strength (logits, mean 0), its interval, the same on the Elo scale, and the counts behind it.

    ``rank``: 1 + how many models are certainly ahead (their whole interval lies above).
    """
    counts = tables(found) if len(found) else np.zeros((0, 0, 2))
    rows = []
    for i in np.argsort(-fitted.strength, kind="stable"):
        low, high = float(fitted.low[i]), float(fitted.high[i])
        rows.append({
            "model": fitted.models[i], "strength": float(fitted.strength[i]), "ci95": [low, high],
            "elo": 1000 + ELO * float(fitted.strength[i]), "elo_ci95": [1000 + ELO * low, 1000 + ELO * high],
            "rank": 1 + int((fitted.low > high).sum()), "wins": float(counts[i, :, 0].sum()),
            "losses": float(counts[:, i, 0].sum()), "ties": float(counts[i, :, 1].sum()),
        })  # fmt: skip
    return rows


def win_rates(found: Votes) -> dict[str, dict[str, dict[str, float | None]]]:
    """model -> opponent -> {rate, n}: wins and half the ties over all their votes."""
    counts = tables(found) if len(found) else np.zeros((0, 0, 2))
    n = counts[..., 0] + counts[..., 0].T + counts[..., 1]
    return {
        one: {
            other: {"rate": float((counts[i, j, 0] + counts[i, j, 1] / 2) / n[i, j]), "n": float(n[i, j])}
            for j, other in enumerate(found.models)
            if n[i, j]
        }
        for i, one in enumerate(found.models)
    }


class BothBad:
    """model -> how many of its answered pairs were "both bad": a tie hides that a model is bad, this does not."""

    def __init__(self, maker: Mapping[str, str]) -> None:
        self.maker = maker
        self.seen: dict[str, list[int]] = {}

    def add(self, record: Feedback) -> None:
        if record.kind != "pair" or record.choice in (None, "skip", "flag"):
            return
        for name in {self.maker[sample] for sample in record.sample_ids if self.maker.get(sample)}:
            count = self.seen.setdefault(name, [0, 0])
            count[0] += record.choice == "both_bad"
            count[1] += 1

    def summary(self) -> dict[str, dict[str, Any]]:
        return {name: share(bad, n) for name, (bad, n) in sorted(self.seen.items())}


def overview(
    feedback: Iterable[Feedback], maker: Mapping[str, str], *, resamples: int = 500, seed: int = 0
) -> dict[str, Any]:
    """All statistics of a store in one pass over its standing feedback: what `visfeedback store stats` shows.

    ``maker``: sample id -> model. Keys: people, agreement, agreement_without_ties, leaderboard, win_rates, both_bad.
    """
    people, with_ties, decided, bad = People(), Answers(), Answers(ties=False), BothBad(maker)

    def seen() -> Iterable[Feedback]:
        for record in feedback:
            for listener in (people, with_ties, decided, bad):
                listener.add(record)
            yield record

    found = votes(seen(), maker)
    few = len(found.models) <= MOST_MODELS
    fitted = fit(found, resamples, seed=seed) if few else None
    return {
        "people": people.summary(),
        "agreement": with_ties.summary(),
        "agreement_without_ties": decided.summary(),
        "leaderboard": leaderboard(found, fitted) if fitted else [],
        "win_rates": win_rates(found) if few else {},
        "both_bad": bad.summary(),
        "votes_on_models": len(found),
    }
