"""Strengths against closed forms and an independent optimiser; graphs that break plain Bradley-Terry; intervals."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.optimize import minimize

from visfeedback.preferences import bradley_terry as bt
from visfeedback.preferences.votes import Votes, votes
from visfeedback.types.records import Feedback


def made(
    theta: list[float], n: int, seed: int = 0, log_ties: float = 0.0, judges: int = 20, prompts: int = 50
) -> Votes:
    """n votes of Davidson's model on pairs drawn evenly."""
    rng = np.random.default_rng(seed)
    m = len(theta)
    first = rng.integers(m, size=n)
    second = (first + rng.integers(1, m, size=n)) % m
    half = (np.array(theta)[first] - np.array(theta)[second]) / 2
    win, lose, tie = np.exp(half), np.exp(-half), np.exp(log_ties)
    draw = rng.random(n) * (win + lose + tie)
    share = np.where(draw < win, 1.0, np.where(draw < win + tie, 0.5, 0.0))
    names = tuple(f"m{i}" for i in range(m))
    judge, prompt = rng.integers(judges, size=n), rng.integers(prompts, size=n)
    return Votes(names, first, second, share, judge, prompt, tuple(f"j{i}" for i in range(judges)))


def tally(wins: int, losses: int, ties: int) -> Votes:
    share = np.array([1.0] * wins + [0.0] * losses + [0.5] * ties)
    zeros = np.zeros(len(share), dtype=np.int64)
    return Votes(("x", "y"), zeros, zeros + 1, share, zeros, np.arange(len(share)), ("j",))


def test_two_models_have_a_closed_form() -> None:
    """The model is saturated: theta_x - theta_y = log(w / l) and eta = log(t / sqrt(w l)), but for the weak prior."""
    theta, eta = bt.solve(bt.tables(tally(3000, 1000, 2000))[None])
    assert theta[0, 0] - theta[0, 1] == pytest.approx(np.log(3), abs=1e-3)
    assert eta[0] == pytest.approx(np.log(2000 / np.sqrt(3e6)), abs=1e-3)
    assert theta.sum() == pytest.approx(0)


def test_the_maximum_is_that_of_a_general_optimiser() -> None:
    """The log posterior written anew, vote by vote, and given to BFGS."""
    data = made([1.0, 0.3, -0.4, -0.9], 300, log_ties=-0.5)

    def loss(x: np.ndarray) -> float:
        half = (x[data.first] - x[data.second]) / 2
        logits = np.stack([half, np.full(len(half), x[-1]), -half])
        chosen = np.choose((2 - 2 * data.share).astype(int), logits)
        return (
            float(np.log(np.exp(logits).sum(0)).sum() - chosen.sum())
            + (bt.PRIOR * (x[:-1] ** 2).sum() + bt.PRIOR_TIES * x[-1] ** 2) / 2
        )

    best = minimize(loss, np.zeros(5), tol=1e-9).x
    theta, eta = bt.solve(bt.tables(data)[None])
    assert theta[0] == pytest.approx(best[:-1] - best[:-1].mean(), abs=1e-4)
    assert eta[0] == pytest.approx(best[-1], abs=1e-4)


def test_known_strengths_are_recovered() -> None:
    """20,000 votes on 6 models: every strength within 0.1 logits, four of five or more inside their intervals."""
    true = np.array([1.5, 0.8, 0.2, -0.3, -0.9, -1.3])
    fitted = bt.fit(made(list(true), 20_000), resamples=100)
    assert fitted.strength == pytest.approx(true - true.mean(), abs=0.1)
    assert ((fitted.low <= true - true.mean()) & (true - true.mean() <= fitted.high)).mean() >= 0.8
    assert np.exp(fitted.log_ties) == pytest.approx(1, abs=0.1)


def test_a_model_that_always_won_and_groups_that_never_met() -> None:
    """Plain Bradley-Terry diverges on both. Here all is finite, order holds inside groups, the doubt is large."""
    rows = [(0, 1)] * 30 + [(2, 3)] * 5
    first, second = np.array(rows).T
    n = len(rows)
    data = Votes(("a", "b", "c", "d"), first, second, np.ones(n), np.arange(n) % 3, np.arange(n), ("x", "y", "z"))
    fitted = bt.fit(data, resamples=50)
    assert np.isfinite([fitted.strength, fitted.low, fitted.high]).all()
    assert fitted.strength[0] > fitted.strength[1] + 3 and fitted.strength[2] > fitted.strength[3] + 1
    _, _, covariance = bt.posterior(bt.tables(data)[None])
    across = covariance[0][0, 0] + covariance[0][2, 2] - 2 * covariance[0][0, 2]
    assert across > 10, "nothing is known between the groups but the prior"


def test_no_votes_and_one_vote() -> None:
    empty = bt.fit(votes([], {}))
    assert (empty.models, empty.n) == ((), 0)
    one = bt.fit(tally(1, 0, 0), resamples=20)
    assert one.strength[0] > 0 and np.isfinite(one.high).all()


def test_intervals_know_who_voted() -> None:
    """The same 2,000 votes; if they come from 8 people, each of one mind, the interval is several times wider."""
    rng = np.random.default_rng(0)
    judge = rng.integers(8, size=2000)
    taste = rng.normal(size=8)[judge] * 1.5
    share = (rng.random(2000) < 1 / (1 + np.exp(-taste))).astype(float)
    zeros = np.zeros(2000, dtype=np.int64)
    many = Votes(("x", "y"), zeros, zeros + 1, share, np.arange(2000), np.arange(2000), ("j",))
    few = Votes(("x", "y"), zeros, zeros + 1, share, judge, np.arange(2000), ("j",))
    wide, narrow = (bt.fit(data, resamples=200) for data in (few, many))
    assert wide.strength == pytest.approx(narrow.strength)
    assert (wide.high - wide.low)[0] > 4 * (narrow.high - narrow.low)[0]


def test_half_votes_count_as_half() -> None:
    """P(a) = .75 twice is one win and one tie: .5 of a win and .5 of a tie each."""
    soft = tally(0, 0, 2)
    soft = Votes(soft.models, soft.first, soft.second, np.array([0.75, 0.75]), soft.judge, soft.prompt, soft.judges)
    assert bt.tables(soft) == pytest.approx(bt.tables(tally(1, 0, 1)))


def test_information_is_where_doubt_is() -> None:
    """Between equals of whom little is known; and a vote lowers the variance of what it is about by log's argument."""
    data = made([0.0, 0.0, 4.0], 200)
    theta, eta, covariance = (one[0] for one in bt.posterior(bt.tables(data)[None]))
    gain = bt.information(theta, float(eta), covariance)
    assert gain[0, 1] > 0 and gain == pytest.approx(gain.T) and np.diag(gain) == pytest.approx(0)
    after = bt.after_vote(theta, float(eta), covariance, 0, 2)
    ratio = np.linalg.det(covariance) / np.linalg.det(after)
    assert np.log(ratio) / 2 == pytest.approx(gain[0, 2]), "the determinant lemma"


def test_votes_from_feedback() -> None:
    """A ranking of three is three votes, best-of-three two; gold, skips and images of one maker none."""
    common = {"judge": "j", "prompt_id": "p"}
    three = {"sample_ids": ("1", "2", "3")}
    records = [
        Feedback(kind="ranking", values=(0, 1, 1), **three, **common),
        Feedback(kind="best", values=(0, 0, 1), **three, **common),
        Feedback(sample_ids=("1", "2"), choice="both_bad", values=(0.5, 0.5), **common),
        Feedback(sample_ids=("1", "2"), choice="skip", **common),
        Feedback(sample_ids=("1", "2"), choice="a", gold=True, **common),
        Feedback(sample_ids=("1", "4"), choice="a", **common),
        Feedback(sample_ids=("1", "unknown"), choice="a", **common),
    ]
    found = votes(records, {"1": "x", "2": "y", "3": "z", "4": "x"})
    rows = [
        (found.models[a], found.models[b], s) for a, b, s in zip(found.first, found.second, found.share, strict=True)
    ]
    assert rows == [("x", "y", 1), ("x", "z", 1), ("y", "z", 0.5), ("x", "z", 0), ("y", "z", 0), ("x", "y", 0.5)]


def test_a_bootstrap_of_500_takes_seconds() -> None:
    """20 models, 10,000 votes, 500 resamples three times over; generous for a busy machine."""
    data = made(list(np.linspace(-1, 1, 20)), 10_000)
    began = time.process_time()
    bt.fit(data, resamples=500)
    assert time.process_time() - began < 20
