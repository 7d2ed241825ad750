"""Measures the statistics of collection: coverage of the leaderboard's intervals, and what active choice saves.

    python scripts/bench_collection.py [--simulations 1000] [--resamples 200] [--active 200] [--json FILE]

Coverage: in each simulation the strengths of 5 models are drawn, then 600 votes with ties by 20 people on 40 prompts;
how often the 95% interval holds the truth, pooled over models and simulations. Twice: votes independent; and
people and prompts with leanings of their own, where the truth is what 400,000 votes of ever new people say.
Active choice: 12 models, 400 votes asked one batch of 10 after another, chosen at random or by expected information;
the error is the share of pairs of models in the wrong order (Kendall). Both see the same people and the same strengths.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from visfeedback.feedback.active import ModelChooser
from visfeedback.preferences import bradley_terry as bt
from visfeedback.preferences.quality import wilson
from visfeedback.preferences.votes import Votes

MODELS, VOTES, PEOPLE, PROMPTS = 5, 600, 20, 40


def draw(rng: np.random.Generator, theta: np.ndarray, n: int, leaning: float, people: int, prompts: int) -> Votes:
    """n votes; a person and a prompt each add N(0, leaning) to every model's strength."""
    m = len(theta)
    judge, prompt = rng.integers(people, size=n), rng.integers(prompts, size=n)
    first = rng.integers(m, size=n)
    second = (first + rng.integers(1, m, size=n)) % m
    own = rng.normal(0, leaning, (people, m)) if leaning else np.zeros((people, m))
    of_prompt = rng.normal(0, leaning, (prompts, m)) if leaning else np.zeros((prompts, m))
    worth = theta + own[judge] + of_prompt[prompt]
    rows = np.arange(n)
    half = (worth[rows, first] - worth[rows, second]) / 2
    win, lose, tie = np.exp(half), np.exp(-half), 0.7
    u = rng.random(n) * (win + lose + tie)
    share = np.where(u < win, 1.0, np.where(u < win + tie, 0.5, 0.0))
    return Votes(tuple(map(str, range(m))), first, second, share, judge, prompt, tuple(map(str, range(people))))


def coverage(simulations: int, resamples: int, leaning: float, seed: int) -> dict[str, Any]:
    inside = np.zeros((simulations, MODELS), dtype=bool)
    width = np.zeros(simulations)
    rng = np.random.default_rng(seed)
    fixed = rng.normal(0, 0.7, MODELS)  # with leanings the truth costs 400,000 votes: found once
    truth = _long_run(rng, fixed, leaning) if leaning else None
    for i in range(simulations):
        theta = fixed if leaning else rng.normal(0, 0.7, MODELS)
        fitted = bt.fit(draw(rng, theta, VOTES, leaning, PEOPLE, PROMPTS), resamples, seed=i)
        true = truth if truth is not None else theta - theta.mean()
        inside[i] = (fitted.low <= true) & (true <= fitted.high)
        width[i] = (fitted.high - fitted.low).mean()
    # models of one simulation are not independent: the interval of the coverage is over simulations
    mean, error = inside.mean(), inside.mean(1).std(ddof=1) / np.sqrt(simulations)
    return {
        "leaning": leaning, "simulations": simulations, "intervals": inside.size, "coverage": float(mean),
        "ci95": [float(mean - 1.96 * error), float(mean + 1.96 * error)], "mean_width": float(width.mean()),
    }  # fmt: skip


def _long_run(rng: np.random.Generator, theta: np.ndarray, leaning: float) -> np.ndarray:
    """Strengths that a leaderboard of ever more people and prompts tends to."""
    votes = draw(rng, theta, 400_000, leaning, 200_000, 200_000)
    return bt.solve(bt.tables(votes)[None])[0][0]


def active(runs: int, seed: int, m: int = 12, budget: int = 400, batch: int = 10) -> dict[str, Any]:
    errors = {how: np.zeros((runs, budget // batch)) for how in ("random", "active")}
    for run in range(runs):
        theta = np.random.default_rng([seed, run]).normal(0, 1, m)
        for how, found in errors.items():
            found[run] = _one_run(theta, how, np.random.default_rng([seed, run, 1]), budget, batch)
    mean = {how: found.mean(0) for how, found in errors.items()}
    target = float(mean["random"][-1])
    saved = [_first_below(errors["active"][rows].mean(0), errors["random"][rows].mean(0)[-1]) * batch / budget
             for rows in np.random.default_rng(seed).integers(runs, size=(1000, runs))]  # fmt: skip
    return {
        "runs": runs, "models": m, "votes": [batch * (i + 1) for i in range(budget // batch)],
        "error_random": mean["random"].tolist(), "error_active": mean["active"].tolist(), "target_error": target,
        "votes_random": budget, "votes_active": _first_below(mean["active"], target) * batch,
        "share_of_votes": _first_below(mean["active"], target) * batch / budget,
        "share_ci95": [float(x) for x in np.quantile(saved, [0.025, 0.975])],
    }  # fmt: skip


def _first_below(errors: np.ndarray, target: float) -> int:
    """How many batches until the error is at most the target."""
    below = np.nonzero(errors <= target + 1e-12)[0]
    return int(below[0]) + 1 if len(below) else len(errors)


def _one_run(theta: np.ndarray, how: str, rng: np.random.Generator, budget: int, batch: int) -> list[float]:
    m = len(theta)
    names = tuple(map(str, range(m)))
    first, second, share = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    errors = []
    for _ in range(budget // batch):
        zeros = np.zeros(len(first), dtype=np.int64)
        chooser = ModelChooser(names, Votes(names, first, second, share, zeros, zeros, ("j",)))
        for _ in range(batch):
            i, j = sorted(rng.choice(m, 2, replace=False))
            if how == "active":
                pick = chooser.best(np.ones((m, m), dtype=bool), rng)
                assert pick is not None
                i, j = pick
                chooser.asked(i, j)
            half = (theta[i] - theta[j]) / 2
            p = np.array([np.exp(half), 0.7, np.exp(-half)])
            said = (1.0, 0.5, 0.0)[rng.choice(3, p=p / p.sum())]
            first, second, share = np.append(first, i), np.append(second, j), np.append(share, said)
        zeros = np.zeros(len(first), dtype=np.int64)
        found = bt.solve(bt.tables(Votes(names, first, second, share, zeros, zeros, ("j",)))[None])[0][0]
        wrong = (found[:, None] > found[None, :]) != (theta[:, None] > theta[None, :])
        errors.append(float(wrong[np.triu_indices(m, 1)].mean()))
    return errors


def timing() -> dict[str, float]:
    """Seconds of processor time of a leaderboard with 500 resamples: 20 models, 10,000 votes."""
    rng = np.random.default_rng(0)
    votes = draw(rng, rng.normal(0, 1, 20), 10_000, 0.0, 50, 500)
    began = time.process_time()
    bt.fit(votes, 500)
    return {"models": 20, "votes": 10_000, "resamples": 500, "cpu_seconds": time.process_time() - began}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--simulations", type=int, default=1000)
    flags.add_argument("--resamples", type=int, default=200)
    flags.add_argument("--active", type=int, default=200, help="runs of active against random choice")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--json", type=Path)
    asked = flags.parse_args()
    began = time.perf_counter()
    found: dict[str, Any] = {"bootstrap": timing(), "coverage": []}
    print(f"bootstrap: {found['bootstrap']}", flush=True)
    for leaning in (0.0, 0.4):
        one = coverage(asked.simulations, asked.resamples, leaning, asked.seed)
        found["coverage"].append(one)
        print(
            f"coverage, leanings of sd {leaning}: {one['coverage']:.3f} [{one['ci95'][0]:.3f}, {one['ci95'][1]:.3f}] "
            f"of {one['intervals']} intervals in {one['simulations']} simulations, mean width {one['mean_width']:.2f}",
            flush=True,
        )
    held = [one["coverage"] * one["intervals"] for one in found["coverage"]]
    n = sum(one["intervals"] for one in found["coverage"])
    found["pooled"] = {"coverage": sum(held) / n, "n": n, "ci95": wilson(round(sum(held)), n)}
    print(f"pooled: {found['pooled']['coverage']:.4f} of {n} intervals")
    one = found["active"] = active(asked.active, asked.seed)
    print(
        f"active choice: error {one['target_error']:.4f} after {one['votes_active']} votes, at random after "
        f"{one['votes_random']}: {one['share_of_votes']:.2f} of the votes "
        f"[{one['share_ci95'][0]:.2f}, {one['share_ci95'][1]:.2f}], {one['runs']} runs"
    )
    print(f"{time.perf_counter() - began:.0f} s")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
