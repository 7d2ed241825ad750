"""Several methods side by side: each trained with several seeds, all judged on the same prompts and image seeds.

What lives here: reading what was measured of each run, pooling over seeds, the summary. Its table is
``contest_table.py``, the page ``contest_page.py``; who trains and measures is not decided here. A contestant's folder:

    run/                                     what was trained, for ``ledger.py``
    evaluation/{summary.json,outcomes.jsonl} the end against the base
    along/STOP/{summary.json,outcomes.jsonl} weights on the way against the base, on fewer prompts

The pooled interval is meant for another training run and other prompts: the variance of the mean over prompts (of gains
averaged over seeds, from the stratified bootstrap) plus that over seeds, and Student's t with Welch and Satterthwaite's
degrees of freedom. What both share is counted twice, so it errs on the wide side. May import: types.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from visfeedback.evaluation.ledger import Ledger, Stop, read_ledger
from visfeedback.evaluation.outcomes import SIDES, Outcome, Seen, read_outcomes
from visfeedback.evaluation.statistics import RESAMPLES, Z95, Estimate, bootstrap
from visfeedback.plugins import InputError
from visfeedback.types.records import Frozen


class Point(Frozen):
    """A model on the way, measured on held-out prompts."""

    step: int
    images: int
    seconds: float
    drift: float
    accuracy: float
    """share of images fully right, categories weigh the same"""
    judge: float
    """change of the judge's mean soft score since the base, in standard deviations between base images"""
    reward: float
    """the same of the trained reward, or of the first one that looked on"""


@dataclass(frozen=True)
class Contestant:
    """One training of one method."""

    method: str
    seed: int
    ledger: Ledger
    summary: dict[str, Any]
    outcomes: Sequence[Outcome]
    along: Sequence[tuple[Stop, Sequence[Outcome], float]]
    """weights on the way that were measured: when, on what, and their drift"""
    before: tuple[int, float]
    """images and seconds that were spent outside the run's folder, for example on labelled pairs"""

    @property
    def images(self) -> int:
        return self.ledger.images + self.before[0]

    @property
    def seconds(self) -> float:
        return self.ledger.seconds + self.before[1]


def read_contestant(method: str, seed: int, folder: Path, before: tuple[int, float] = (0, 0.0)) -> Contestant:
    """Raises InputError when something of it is missing."""
    ledger, outcomes = read_ledger(folder / "run"), read_outcomes(folder / "evaluation")
    summary = json.loads((folder / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    if any(outcome.base.right is None for outcome in outcomes):
        raise InputError(f"{folder / 'evaluation'} has no verdicts; evaluate on prompts that a verifier can read")
    stops = [(stop, folder / "along" / stop.name) for stop in ledger.stops[:-1]]
    known = [(stop, where) for stop, where in stops if (where / "summary.json").is_file()]
    along = [(stop, read_outcomes(where), _drift(where)) for stop, where in known]
    return Contestant(method, seed, ledger, summary, outcomes, along, before)


Image = tuple[str, int | None]
"""prompt id and seed"""


def shown_along(contestants: Sequence[Contestant]) -> set[Image]:
    """The images that weights on the way were measured on; empty when none were."""
    return {(row.prompt_id, row.seed) for one in contestants for _, rows, _ in one.along for row in rows}


def points(run: Contestant, shown: set[Image]) -> list[Point]:
    """The base, the stops that were measured, and the end, all on the images ``shown``, which must be the same for all
    that are compared; on all images when there are none."""
    ends = [row for row in run.outcomes if not shown or (row.prompt_id, row.seed) in shown]
    start = Stop(name="base", step=0, images=0, seconds=0.0, weights="")
    everything = [(start, ends, 0.0), *run.along, (run.ledger.stops[-1], ends, run.summary["drift"])]
    return [_point(stop, rows, drift, run.before) for stop, rows, drift in everything]


def _drift(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))["drift"]


def _point(stop: Stop, rows: Sequence[Outcome], drift: float, before: tuple[int, float]) -> Point:
    side = "tuned" if stop.step else "base"
    seen: list[Seen] = [getattr(row, side) for row in rows]
    spent = before if stop.step else (0, 0.0)
    return Point(
        step=stop.step, images=stop.images + spent[0], seconds=stop.seconds + spent[1], drift=drift,
        accuracy=_share(rows, [bool(one.right) for one in seen]),
        judge=_change([_soft(row.base) for row in rows], [_soft(one) for one in seen]),
        reward=_change([_first(row.base) for row in rows], [_first(one) for one in seen]),
    )  # fmt: skip


def _soft(seen: Seen) -> float:
    return float(seen.right or 0.0) if seen.score is None else seen.score


def _first(seen: Seen) -> float:
    return next(iter(seen.rewards.values()), 0.0)


def _change(base: Sequence[float], now: Sequence[float]) -> float:
    """Difference of means in standard deviations of the base; 0 where the base has none."""
    spread = float(np.std(base))
    return (float(np.mean(now)) - float(np.mean(base))) / spread if spread > 0 else 0.0


def _share(rows: Sequence[Outcome], right: Sequence[bool]) -> float:
    """Mean over categories of the share that is right."""
    kinds: dict[str, list[bool]] = {}
    for row, value in zip(rows, right, strict=True):
        kinds.setdefault(row.category, []).append(value)
    return float(np.mean([np.mean(values) for values in kinds.values()]))


# -------------------------------------------------------------------------------------------------------- pooling


def pool(
    values: np.ndarray, clusters: Sequence[str], strata: Sequence[str] | None = None, *, seed: int = 0,
    resamples: int = RESAMPLES, bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:  # fmt: skip
    """values (S, N) of S trainings on the same N images, their prompts and categories -> mean with a 95% interval.

    With one training the interval is the bootstrap's and says nothing of another training.
    """
    count = len(values)
    prompts = bootstrap(values.mean(axis=0), clusters, strata, seed=seed, resamples=resamples,
                        bounds=bounds if count == 1 else (-np.inf, np.inf))  # fmt: skip
    if count == 1 or prompts.interval is None:
        return prompts
    each = [bootstrap(row, clusters, strata, resamples=1).value for row in values]
    shares = np.array([((prompts.high - prompts.low) / (2 * Z95)) ** 2, np.var(each, ddof=1) / count])
    freedom = np.array([max(1, len(set(clusters)) - len(set(strata or [""]))), count - 1])
    total = float(shares.sum())
    together = total**2 / float((shares**2 / freedom).sum()) if total > 0 else 1.0
    half = float(student.ppf(0.975, together)) * total**0.5
    low, high = np.clip([prompts.value - half, prompts.value + half], *bounds)
    return Estimate(prompts.value, float(low), float(high))


def summarise(contestants: Sequence[Contestant], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Method -> its numbers, pooled over seeds and of each; methods in the order of the best first."""
    methods: dict[str, list[Contestant]] = {}
    for one in contestants:
        methods.setdefault(one.method, []).append(one)
    shown = shown_along(contestants)
    found = {name: _method(runs, shown, seed, resamples) for name, runs in methods.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]["delta"]))


def _method(runs: Sequence[Contestant], shown: set[Image], seed: int, resamples: int) -> dict[str, Any]:
    first = runs[0].outcomes
    same = [[(row.prompt_id, row.seed) for row in run.outcomes] for run in runs]
    if any(rows != same[0] for rows in same):
        raise InputError(f"runs of {runs[0].method} were judged on different prompts or images; give another --out")
    prompts, kinds = [row.prompt_id for row in first], [row.category for row in first]
    gains = np.array([[float(bool(r.tuned.right)) - float(bool(r.base.right)) for r in run.outcomes] for run in runs])
    delta = pool(gains, prompts, kinds, seed=seed, resamples=resamples, bounds=(-1.0, 1.0))
    return {
        "seeds": [run.seed for run in runs], "taught_by": runs[0].ledger.taught_by, "n_prompts": len(set(prompts)),
        "n_images": len(prompts), "base": _mean([run.summary["base"]["accuracy"] for run in runs]),
        "tuned": _mean([run.summary["tuned"]["accuracy"] for run in runs]),
        "delta": delta.value, "delta_ci95": delta.interval, **_win_rate(runs, prompts, seed, resamples),
        "drift": _mean([run.summary["drift"] for run in runs]),
        "diversity": {side: _mean_known([run.summary["diversity"][side] for run in runs]) for side in SIDES},
        "reward": next(iter(first[0].base.rewards), ""),
        "rewards": {name: {side: _mean([run.summary[side]["rewards"][name] for run in runs]) for side in SIDES}
                    for name in first[0].base.rewards},
        "delta_per_category": _per_category(gains, prompts, kinds, seed, resamples),
        "images": _mean([run.images for run in runs]), "seconds": _mean([run.seconds for run in runs]),
        "per_seed": {str(run.seed): _one(run, shown) for run in runs},
    }  # fmt: skip


def _per_category(
    gains: np.ndarray, prompts: Sequence[str], kinds: Sequence[str], seed: int, resamples: int
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kinds):
        rows = [i for i, other in enumerate(kinds) if other == kind]
        change = pool(gains[:, rows], [prompts[i] for i in rows], seed=seed, resamples=resamples, bounds=(-1.0, 1.0))
        found[kind or "all"] = {"delta": change.value, "ci95": change.interval, "n": len(rows)}
    return found


def _win_rate(runs: Sequence[Contestant], prompts: Sequence[str], seed: int, resamples: int) -> dict[str, Any]:
    """Over the pairs that the judge answered in every run."""
    wins = [[row.win for row in run.outcomes] for run in runs]
    rows = [i for i in range(len(prompts)) if all(row[i] is not None for row in wins)]
    if not rows:
        return {"win_rate": None, "win_rate_ci95": None}
    table = np.array([[row[i] for i in rows] for row in wins], dtype=float)
    rate = pool(table, [prompts[i] for i in rows], seed=seed, resamples=resamples, bounds=(0.0, 1.0))
    return {"win_rate": rate.value, "win_rate_ci95": rate.interval}


def _one(run: Contestant, shown: set[Image]) -> dict[str, Any]:
    """A single training."""
    kept = ("delta", "delta_ci95", "win_rate", "win_rate_ci95", "drift", "diversity", "delta_per_category")
    return {
        "tuned": run.summary["tuned"]["accuracy"], **{name: run.summary[name] for name in kept},
        "rewards": run.summary["tuned"]["rewards"], "images": run.images, "seconds": round(run.seconds, 1),
        "points": [point.model_dump() for point in points(run, shown)],
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None
