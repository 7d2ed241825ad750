"""What was seen of one prompt and seed: the base image and the tuned image, judged. And the summary of many.

``outcomes.jsonl`` beside the pictures holds one ``Outcome`` a line; summary and page derive from it.
May import: types.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from visfeedback.evaluation.statistics import RESAMPLES, Estimate, bootstrap, cluster_means, rate
from visfeedback.types.files import read_jsonl
from visfeedback.types.records import Frozen

FILE = "outcomes.jsonl"
Change = Literal["mended", "broken", "still right", "still wrong", "unjudged"]
SIDES: tuple[Literal["base", "tuned"], ...] = ("base", "tuned")


class Seen(Frozen):
    """One image."""

    sample_id: str
    path: str
    """relative to the folder of `outcomes.jsonl`"""
    right: bool | None = None
    """everything the prompt asks for holds; None without a verifier"""
    score: float | None = None
    """the verifier's soft score in [0, 1]"""
    aspects: dict[str, bool] = Field(default_factory=dict)
    rewards: dict[str, float] = Field(default_factory=dict)
    """native units"""
    measures: dict[str, float] = Field(default_factory=dict)
    """functions of the image alone, for example `render_distance`"""


class Outcome(Frozen):
    """Both images of one prompt and seed."""

    prompt_id: str
    prompt: str
    category: str = ""
    seed: int | None = None
    base: Seen
    tuned: Seen
    win: float | None = None
    """1 = the judge prefers the tuned image, 0 = the base image, .5 = a tie; None when it did not answer"""

    @property
    def change(self) -> Change:
        """What tuning did to this picture, by the verifier."""
        if self.base.right is None or self.tuned.right is None:
            return "unjudged"
        if self.base.right:
            return "still right" if self.tuned.right else "broken"
        return "mended" if self.tuned.right else "still wrong"


def summarise(outcomes: Sequence[Outcome], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Base, tuned, their difference and the win rate, with 95% intervals that resample prompts; None of one prompt.

    ``accuracy`` is the equal-weight mean over categories of the share fully right; ``accuracy_images`` the plain mean.
    ``delta`` is tuned minus base of what ``delta_of`` says: accuracy, else the first reward's mean, else win rate - .5.
    Raises ValueError for no outcomes.
    """
    if not outcomes:
        raise ValueError("no outcomes to summarise")
    what, delta = _delta(outcomes, seed, resamples)
    win = _win_rate(outcomes, seed, resamples)
    return {
        **{side: _side(outcomes, side, seed, resamples) for side in SIDES},
        "delta": delta.value if delta else None,
        "delta_ci95": delta.interval if delta else None,
        "delta_of": what,
        "delta_per_category": _delta_per_category(outcomes, seed, resamples),
        "win_rate": win.value if win else None,
        "win_rate_ci95": win.interval if win else None,
        "judged_pairs": sum(o.win is not None for o in outcomes),
        "changes": {name: sum(o.change == name for o in outcomes) for name in CHANGES} if _verified(outcomes) else None,
    }  # fmt: skip


CHANGES: tuple[Change, ...] = ("mended", "still right", "still wrong", "broken")


def _verified(outcomes: Sequence[Outcome]) -> bool:
    return all(o.change != "unjudged" for o in outcomes)


def _side(outcomes: Sequence[Outcome], side: Literal["base", "tuned"], seed: int, resamples: int) -> dict[str, Any]:
    """Accuracy, rewards and measures of one model."""
    seen = [getattr(o, side) for o in outcomes]
    summary: dict[str, Any] = {
        "accuracy": None, "accuracy_ci95": None, "accuracy_images": None, "per_category": {}, "aspects": {},
    }  # fmt: skip
    if _verified(outcomes):
        right = [float(s.right) for s in seen]
        whole = bootstrap(right, *_axes(outcomes), seed=seed, resamples=resamples, bounds=(0.0, 1.0))
        summary |= {"accuracy": whole.value, "accuracy_ci95": whole.interval,
                    "accuracy_images": sum(right) / len(right),
                    "per_category": _per_category(outcomes, right), "aspects": _aspects(seen)}  # fmt: skip
    return summary | {"rewards": _means([s.rewards for s in seen]), "measures": _means([s.measures for s in seen])}


def _axes(outcomes: Sequence[Outcome]) -> tuple[list[str], list[str]]:
    """Cluster (prompt) and stratum (category) of each outcome."""
    return [o.prompt_id for o in outcomes], [o.category for o in outcomes]


def _per_category(outcomes: Sequence[Outcome], right: Sequence[float]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for category in dict.fromkeys(o.category for o in outcomes):
        rows = [i for i, o in enumerate(outcomes) if o.category == category]
        share = rate([right[i] for i in rows], [outcomes[i].prompt_id for i in rows])
        found[category or "all"] = {"accuracy": share.value, "n": len(rows), "ci95": share.interval}
    return found


def _delta_per_category(outcomes: Sequence[Outcome], seed: int, resamples: int) -> dict[str, dict[str, Any]]:
    if not _verified(outcomes):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for category in dict.fromkeys(o.category for o in outcomes):
        rows = [o for o in outcomes if o.category == category]
        change = bootstrap(_gains(rows), [o.prompt_id for o in rows], seed=seed, resamples=resamples, bounds=(-1, 1))
        found[category or "all"] = {"delta": change.value, "n": len(rows), "ci95": change.interval}
    return found


def _gains(outcomes: Sequence[Outcome]) -> list[float]:
    return [float(bool(o.tuned.right)) - float(bool(o.base.right)) for o in outcomes]


def _aspects(seen: Sequence[Seen]) -> dict[str, dict[str, Any]]:
    """How often each aspect holds among the images whose prompt speaks of it."""
    names = dict.fromkeys(name for s in seen for name in s.aspects)
    held = {name: [s.aspects[name] for s in seen if name in s.aspects] for name in names}
    return {name: {"rate": sum(values) / len(values), "n": len(values)} for name, values in held.items()}


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _delta(outcomes: Sequence[Outcome], seed: int, resamples: int) -> tuple[str, Estimate | None]:
    """Tuned minus base, paired: accuracy if verified, else the first reward, else the judge's win rate minus a half."""
    clusters, strata = _axes(outcomes)
    if _verified(outcomes):
        change = bootstrap(_gains(outcomes), clusters, strata, seed=seed, resamples=resamples, bounds=(-1, 1))
        return "accuracy", change
    for name in outcomes[0].base.rewards:
        gains = [o.tuned.rewards[name] - o.base.rewards[name] for o in outcomes]
        return f"reward {name}", bootstrap(gains, clusters, strata, seed=seed, resamples=resamples)
    win = _win_rate(outcomes, seed, resamples)
    return "win rate above one half", Estimate(win.value - 0.5, win.low - 0.5, win.high - 0.5) if win else None


def _win_rate(outcomes: Sequence[Outcome], seed: int, resamples: int) -> Estimate | None:
    """Share of pairs the tuned image wins, ties half, every prompt with equal weight; None when nothing was judged."""
    judged = [(o.win, o.prompt_id) for o in outcomes if o.win is not None]
    if not judged:
        return None
    wins, clusters = zip(*judged, strict=True)
    return bootstrap(wins, clusters, seed=seed, resamples=resamples, bounds=(0.0, 1.0))


def read_outcomes(folder: Path) -> list[Outcome]:
    """The outcomes that ``compare`` left in ``folder``. Raises InputError when there are none or they are damaged."""
    return list(read_jsonl(folder / FILE, Outcome))


def prompt_count(outcomes: Sequence[Outcome]) -> int:
    return len(cluster_means([0.0] * len(outcomes), [o.prompt_id for o in outcomes])[1])
