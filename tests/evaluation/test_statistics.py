"""Intervals: known values, laws, and coverage on simulated data."""

from __future__ import annotations

import numpy as np
import pytest

from visfeedback.evaluation.statistics import bootstrap, cluster_means, rate, spread, wilson


def test_bootstrap_is_seeded_and_centred():
    values, clusters = np.random.default_rng(0).random(30), [str(i // 2) for i in range(30)]
    first, again = bootstrap(values, clusters, seed=3), bootstrap(values, clusters, seed=3)
    assert first == again
    assert first.value == pytest.approx(values.mean())
    assert first.low < first.value < first.high
    assert first != bootstrap(values, clusters, seed=4)


def test_images_of_a_prompt_are_not_independent_witnesses():
    """Twice the same image says nothing new: the interval of doubled data equals the interval of the data."""
    rng = np.random.default_rng(0)
    values, clusters = rng.random(40), [str(i) for i in range(40)]
    once = bootstrap(values, clusters, seed=1)
    doubled = bootstrap(np.repeat(values, 2), [c for c in clusters for _ in range(2)], seed=1)
    assert once.low == pytest.approx(doubled.low)
    assert once.high == pytest.approx(doubled.high)


def test_strata_weigh_the_same_whatever_their_size():
    """9 prompts at 1 and 1 prompt at 0: the mean over prompts is .9, the equal-weight category mean .5."""
    values, clusters = [1.0] * 9 + [0.0], [str(i) for i in range(10)]
    assert bootstrap(values, clusters).value == pytest.approx(0.9)
    assert bootstrap(values, clusters, ["big"] * 9 + ["small"]).value == pytest.approx(0.5)


def test_strata_of_one_cluster_are_resampled_from_each_other():
    """Gains 1, 0, 1, 0 in four categories of one prompt each: as uncertain as four prompts of one category. Before,
    the interval had no width."""
    values, clusters = [1.0, 0.0, 1.0, 0.0], list("abcd")
    alone, together = bootstrap(values, clusters, list("wxyz")), bootstrap(values, clusters)
    assert alone.value == together.value == 0.5
    assert alone.low < 0.2 and alone.high > 0.8
    assert (alone.low, alone.high) == pytest.approx((together.low, together.high), abs=0.05)


def test_the_only_stratum_of_one_cluster_borrows_from_the_smallest_other():
    """Category x: five prompts that all gain 1; y: one prompt that loses 1. x shows no spread; y, half of the mean, is
    drawn from all six: 1 - 2/3 or -1 - 2/3, widened by sqrt(6/5) and halved: +.1826 or -.9129."""
    estimate = bootstrap([1.0] * 5 + [-1.0], [str(i) for i in range(6)], ["x"] * 5 + ["y"])
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((-0.9129, 0, 0.1826), abs=1e-4)


def test_one_cluster_has_no_interval():
    """Ten images of one prompt say nothing about other prompts."""
    estimate = bootstrap([1.0] * 10, ["a"] * 10, bounds=(0.0, 1.0))
    assert estimate.value == 1 and estimate.interval is None
    assert bootstrap([1.0, 1.0], ["a", "b"]).interval == [1, 1]


def test_coverage_with_one_prompt_a_category():
    """12 categories of one prompt; their gains are about .15: nearly all intervals have the truth inside (of 300, 90%
    with two standard errors to spare; before, with no width, none had)."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        values, _, _ = _paired_differences(rng)
        names = [str(i // 2) for i in range(24)]
        estimate = bootstrap(values[:24], names, names, resamples=400, seed=1)
        hits += estimate.low <= 0.15 <= estimate.high
    assert hits / 300 >= 0.90


def test_bounds_cut_the_interval():
    """(1, 1, 0): with the widening of sqrt(3/2) the resampled mean would exceed 1."""
    values, clusters = [1.0, 1.0, 0.0], list("abc")
    assert bootstrap(values, clusters).high > 1
    assert bootstrap(values, clusters, bounds=(0, 1)).high == 1


def test_small_chunks_change_nothing_but_memory(monkeypatch):
    """The generator's stream is the same whether indices are drawn in one block or in rows."""
    values, clusters = list(np.random.default_rng(2).random(30)), [str(i) for i in range(30)]
    whole = bootstrap(values, clusters, seed=5, resamples=500)
    monkeypatch.setattr("visfeedback.evaluation.statistics.CELLS", 30 * 64)
    assert bootstrap(values, clusters, seed=5, resamples=500) == whole


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="nothing"):
        bootstrap([], [])


def _paired_differences(rng: np.random.Generator) -> tuple[np.ndarray, list[str], list[str]]:
    """28 prompts in 4 categories, 2 images each: tuned minus base in {-1, 0, 1}, with a gain that is the prompt's own.

    Expected difference: the gain of a prompt is uniform in [0, .3] on a base rate of .4, so its mean is .15.
    """
    gain = np.repeat(rng.uniform(0, 0.3, 28), 2)
    difference = (rng.random(56) < 0.4 + gain).astype(float) - (rng.random(56) < 0.4)
    prompts = [str(i // 2) for i in range(56)]
    return difference, prompts, [str(i // 14) for i in range(56)]


@pytest.mark.parametrize("stratified", [False, True])
def test_coverage_of_the_95_percent_interval(stratified):
    """Of 400 simulated experiments 90% to 98% must have the truth, .15, inside the interval."""
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(400):
        values, prompts, categories = _paired_differences(rng)
        estimate = bootstrap(values, prompts, categories if stratified else None, resamples=600, seed=1)
        hits += estimate.low <= 0.15 <= estimate.high
    assert 0.90 <= hits / 400 <= 0.98


def test_wilson_known_value():
    """8 of 10: (.8 + .19207) / 1.38415 = .71673 -+ .22658; R's prop.test(8, 10, correct=FALSE) gives .4902, .9433."""
    estimate = wilson(0.8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_rate_of_independent_images_is_wilson_and_of_copies_counts_prompts():
    """One image a prompt: plain Wilson. Images that are copies: the design effect is 2 and half of them count."""
    right, names = [1, 0, 1, 1, 0, 1, 0, 1], [str(i) for i in range(8)]
    alone = rate(right, names)
    assert alone.interval == pytest.approx(wilson(5 / 8, 8).interval)
    copies = rate(np.repeat(right, 2), [n for n in names for _ in range(2)])
    assert copies.interval == pytest.approx(wilson(5 / 8, 8).interval)


def test_rate_at_the_edges_stays_humble():
    """12 of 12 in 6 prompts: never [1, 1]; as no spread is seen, only the 6 prompts count: low = 6 / (6 + z^2)."""
    estimate = rate([1] * 12, [str(i // 2) for i in range(12)])
    assert estimate.high == 1
    assert estimate.low == pytest.approx(6 / (6 + 3.8415), abs=1e-4)


def test_rate_coverage():
    """Images of a prompt share its own difficulty (Beta(2, 2)); the true rate is .5."""
    rng = np.random.default_rng(5)
    names = [str(i // 3) for i in range(75)]
    hits = 0
    for _ in range(400):
        difficulty = np.repeat(rng.beta(2, 2, 25), 3)
        estimate = rate((rng.random(75) < difficulty).astype(float), names)
        hits += estimate.low <= 0.5 <= estimate.high
    assert 0.90 <= hits / 400 <= 0.98


def test_cluster_means_keep_the_order_of_first_appearance():
    means, order = cluster_means([1, 2, 3, 4], ["b", "a", "b", "a"])
    assert order == ["b", "a"]
    assert means.tolist() == [2, 3]


def test_spread():
    """Black, black, white: distances 0, 1, 1, mean 2/3. One image has no spread."""
    black, white = np.zeros((4, 4, 3)), np.ones((4, 4, 3))
    assert spread(np.stack([black, black, white])) == pytest.approx(2 / 3)
    assert spread(black[None]) is None
