"""Strengths of models from votes with ties: Bradley-Terry in Davidson's form, with intervals that know who voted.

Davidson (1970): P(i beats j) = p_i / D, P(tie) = nu sqrt(p_i p_j) / D, D = p_i + p_j + nu sqrt(p_i p_j). Chosen over
Rao and Kupper (1967) because it is log-linear in theta = log p and eta = log nu: the likelihood is concave, so Newton
finds the one maximum; and a tie counts as half a win for each, as people read it. A share in between, such as P(a) = .7
of several people, counts as .4 of a win and .6 of a tie.

Prior: theta ~ N(0, 1 / PRIOR), so weak that it matters only where the data says nothing: between groups of models that
never met, and for a model that always won. Strengths add up to 0: no model is the anchor, whose noise would move all.

Intervals: votes of one person, and votes on one prompt, are not independent. The covariance is that of three
bootstraps: over judges + over prompts - over both at once (Cameron, Gelbach and Miller 2011), with Student's t for few
clusters. Resampling judges and prompts in one go would triple the noise of single votes. Left out: covariates of style,
drift over time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special, stats

from visfeedback.preferences.votes import Votes

Array = NDArray[np.float64]
PRIOR = 0.02  # precision of theta; its standard deviation is 7, odds of 1000 to 1
PRIOR_TIES = 0.1  # precision of eta around 0
TOLERANCE = 1e-9
STEPS = 50
MOST_FOR_ALL_PAIRS = 30
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
CHUNK = 64  # resamples fitted together


@dataclass(frozen=True)
class Fit:
    """Strengths in logits (natural logarithm of odds), mean 0, and their uncertainty."""

    models: tuple[str, ...]
    strength: Array  # (M,)
    low: Array  # (M,)
    high: Array  # (M,)
    covariance: Array  # (M, M) of the strengths
    log_ties: float  # eta; minus infinity is never reached thanks to the prior
    n: int  # votes
    level: float  # of the intervals


def tables(votes: Votes, weights: Array | None = None) -> Array:
    """(M, M, 2): [i, j, 0] wins of i over j, [i, j, 1] ties of i and j (symmetric, each tie in both places)."""
    m = len(votes.models)
    cells = _cells(votes) if weights is None else _cells(votes).multiply(weights[:, None])
    return _square(np.asarray(cells.sum(axis=0)).ravel()[None], m)[0]


def _cells(votes: Votes) -> sparse.csr_array:
    """(N, 2 M M): what each vote puts into the flat tables of wins (first M M) and ties."""
    m, n = len(votes.models), len(votes)
    p = votes.share
    ties = 1 - np.abs(2 * p - 1)
    wins, losses = np.maximum(2 * p - 1, 0), np.maximum(1 - 2 * p, 0)
    ahead, behind = votes.first * m + votes.second, votes.second * m + votes.first
    rows = np.tile(np.arange(n), 4)
    columns = np.concatenate([ahead, behind, m * m + ahead, m * m + behind])
    values = np.concatenate([wins, losses, ties, ties])
    return sparse.csr_array((values, (rows, columns)), shape=(n, 2 * m * m))


def _square(flat: Array, m: int) -> Array:
    return np.moveaxis(flat.reshape(-1, 2, m, m), 1, 3)


def solve(table: Array, prior: float = PRIOR) -> tuple[Array, Array]:
    """Maximum a posteriori of B tables (B, M, M, 2) at once -> theta (B, M) with mean 0, eta (B,). Newton's method."""
    x = _maximum(table, prior)[0]
    theta = x[:, :-1]
    return theta - theta.mean(1, keepdims=True), x[:, -1]


def posterior(table: Array, prior: float = PRIOR) -> tuple[Array, Array, Array]:
    """As `solve`, with the covariance (B, M, M) of theta if every vote stood for itself (Laplace)."""
    x, curvature = _maximum(table, prior)
    return x[:, :-1], x[:, -1], np.asarray(np.linalg.inv(curvature)[:, :-1, :-1], dtype=np.float64)


def information(theta: Array, log_ties: float, covariance: Array) -> Array:
    """(M, M) nats that the next vote on i and j is expected to bring: log(1 + s v) / 2.

    s: variance of the game's score, largest between equals; v: variance of theta_i - theta_j.
    """
    p_win, p_tie = _probabilities(theta[None], np.array([log_ties]))
    mean = p_win[0] + p_tie[0] / 2
    spread = p_win[0] + p_tie[0] / 4 - mean**2
    return np.log1p(spread * _variance(covariance)) / 2


def order_information(theta: Array, log_ties: float, covariance: Array) -> Array:
    """(M, M) nats that the next vote on i and j is expected to bring about who is ahead of whom.

    The doubt is the sum over pairs of models of the entropy of "k is ahead of l". A vote on (i, j) lowers the variance
    of each difference and moves its mean; the entropy afterwards is averaged over where that may go (Gauss-Hermite).
    For more than 30 models only the pair's own order counts, or the sum would take too long.
    """
    m = len(theta)
    i, j = np.triu_indices(m, 1)
    p_win, p_tie = _probabilities(theta[None], np.array([log_ties]))
    mean = (p_win[0] + p_tie[0] / 2)[i, j]
    spread = p_win[0][i, j] + p_tie[0][i, j] / 4 - mean**2  # (P,)
    gap, variance = theta[i] - theta[j], _variance(covariance)[i, j]
    toward = (covariance[:, i] - covariance[:, j]).T  # (P, M): covariance of each model with the difference asked about
    if m <= MOST_FOR_ALL_PAIRS:
        shift = (toward[:, i] - toward[:, j]) ** 2 * (spread / (1 + spread * variance))[:, None]  # (P, P)
        gain = _entropy_drop(gap[None], variance[None], shift).sum(1)
    else:
        gain = _entropy_drop(gap, variance, variance**2 * spread / (1 + spread * variance))
    whole = np.zeros((m, m))
    whole[i, j] = whole[j, i] = gain
    return whole


def _entropy_drop(gap: Array, variance: Array, shift: Array) -> Array:
    """Entropy of the sign of N(gap, variance), less what is left when ``shift`` of the variance becomes known."""
    shift = np.minimum(shift, variance * (1 - 1e-9))
    moved = gap[..., None] + np.sqrt(shift)[..., None] * NODES
    after = _entropy(moved / np.sqrt(variance - shift)[..., None]) @ WEIGHTS
    return np.maximum(_entropy(gap / np.sqrt(variance)) - after, 0)


def _entropy(z: Array) -> Array:
    p = special.ndtr(z)
    return special.entr(p) + special.entr(1 - p)


def after_vote(theta: Array, log_ties: float, covariance: Array, i: int, j: int) -> Array:
    """The covariance that is expected after one more vote on i and j, whatever it says."""
    p_win, p_tie = _probabilities(theta[None, [i, j]], np.array([log_ties]))
    mean = p_win[0, 0, 1] + p_tie[0, 0, 1] / 2
    spread = p_win[0, 0, 1] + p_tie[0, 0, 1] / 4 - mean**2
    toward = covariance[:, i] - covariance[:, j]
    variance = toward[i] - toward[j]
    return covariance - np.outer(toward, toward) * spread / (1 + spread * variance)


def _variance(covariance: Array) -> Array:
    own = np.diag(covariance)
    return own[:, None] + own[None, :] - 2 * covariance


def _maximum(table: Array, prior: float) -> tuple[Array, Array]:
    """theta and eta (B, M + 1), and minus the second derivative there."""
    b, m = table.shape[:2]
    wins, ties = table[..., 0], table[..., 1]
    games = wins + wins.swapaxes(1, 2) + ties  # (B, M, M), symmetric
    score = wins.sum(2) + ties.sum(2) / 2  # (B, M)
    drawn = ties.sum((1, 2)) / 2  # (B,)
    x, curvature = np.zeros((b, m + 1)), np.zeros((b, m + 1, m + 1))
    for _ in range(STEPS):
        gradient, curvature = _derivatives(x, games, score, drawn, prior)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        step *= np.minimum(1, 3 / np.maximum(np.abs(step).max(1, keepdims=True), 1e-300))  # far away, not too far
        x += step
        if np.abs(step).max(initial=0) < TOLERANCE:
            break
    return x, curvature


def _probabilities(theta: Array, eta: Array) -> tuple[Array, Array]:
    """(B, M), (B,) -> (B, M, M) that i beats j, and that they tie."""
    half = (theta[:, :, None] - theta[:, None, :]) / 2
    top = np.maximum(np.abs(half), eta[:, None, None])
    win, tie = np.exp(half - top), np.exp(eta[:, None, None] - top)
    whole = win + np.exp(-half - top) + tie
    return win / whole, tie / whole


def _derivatives(x: Array, games: Array, score: Array, drawn: Array, prior: float) -> tuple[Array, Array]:
    """Gradient (B, M+1) and minus the second derivative (B, M+1, M+1) of the log posterior."""
    b, m = score.shape
    theta, eta = x[:, :m], x[:, m]
    p_win, p_tie = _probabilities(theta, eta)
    expected = games * (p_win + p_tie / 2)
    gradient = np.empty((b, m + 1))
    gradient[:, :m] = score - expected.sum(2) - prior * theta
    gradient[:, m] = drawn - (games * p_tie).sum((1, 2)) / 2 - PRIOR_TIES * eta
    mean = p_win + p_tie / 2
    spread = games * (p_win + p_tie / 4 - mean**2)  # variance of a game's score
    curvature = np.zeros((b, m + 1, m + 1))
    curvature[:, :m, :m] = -spread
    i = np.arange(m)
    curvature[:, i, i] = spread.sum(2) - spread[:, i, i] + prior
    cross = (games * p_tie * (0.5 - mean)).sum(2)
    curvature[:, :m, m] = curvature[:, m, :m] = cross
    curvature[:, m, m] = (games * p_tie * (1 - p_tie)).sum((1, 2)) / 2 + PRIOR_TIES
    return gradient, curvature


def fit(votes: Votes, resamples: int = 500, level: float = 0.95, seed: int = 0) -> Fit:
    """Strengths with intervals. No votes: no models. Deterministic in ``seed``."""
    m = len(votes.models)
    if not m:
        empty = np.zeros(0)
        return Fit((), empty, empty, empty, np.zeros((0, 0)), 0.0, 0, level)
    theta, eta = solve(tables(votes)[None])
    covariance = _covariance(votes, resamples, np.random.default_rng(seed)) if resamples else np.zeros((m, m))
    half = _quantile(votes, level) * np.sqrt(np.diag(covariance))
    return Fit(votes.models, theta[0], theta[0] - half, theta[0] + half, covariance, float(eta[0]), len(votes), level)


def _quantile(votes: Votes, level: float) -> float:
    """Student's t for few clusters: with 10 judges a variance is itself uncertain. One judge alone is no sample."""
    groups = [count for count in (len(np.unique(votes.judge)), len(np.unique(votes.prompt))) if count > 1]
    return float(stats.t.ppf((1 + level) / 2, max(min(groups, default=len(votes)) - 1, 1)))


def _covariance(votes: Votes, resamples: int, rng: np.random.Generator) -> Array:
    """Judges + prompts - both at once. The difference of estimates may fall too low: half the last is the floor."""
    cells = _cells(votes)
    both = votes.judge * (int(votes.prompt.max()) + 1) + votes.prompt
    by_both = _resampled(cells, both, len(votes.models), resamples, rng)
    single = [groups for groups in (votes.judge, votes.prompt) if len(np.unique(groups)) > 1]
    parts = [_resampled(cells, groups, len(votes.models), resamples, rng) for groups in single]
    if not parts:
        return by_both
    total = sum(parts[1:], parts[0]) - by_both * (len(parts) - 1)
    np.fill_diagonal(total, np.maximum(np.diag(total), np.diag(by_both) / 2))
    return total


def _resampled(
    cells: sparse.csr_array, groups: NDArray[np.int64], m: int, count: int, rng: np.random.Generator
) -> Array:
    """Covariance (M, M) of the strengths when whole groups are drawn again with replacement."""
    _, index = np.unique(groups, return_inverse=True)
    g = int(index.max()) + 1
    put = sparse.csr_array((np.ones(len(index)), (index, np.arange(len(index)))), shape=(g, len(index)))
    grouped = sparse.csr_array(put @ cells)
    found = []
    for start in range(0, count, CHUNK):
        drawn = rng.multinomial(g, np.full(g, 1 / g), size=min(CHUNK, count - start)).astype(float)
        found.append(solve(_square(np.asarray((grouped.T @ drawn.T).T), m))[0])
    theta = np.concatenate(found)
    correction = g / (g - 1) if g > 1 else 1.0
    return np.atleast_2d(np.cov(theta, rowvar=False)) * correction
