"""Means and intervals, clusters, ranks."""

from __future__ import annotations

from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from visfeedback.scoring import tables
from visfeedback.scoring.summary import Summary, interval, labels

ABOUT = {"model": "m", "revision": "", "checkpoint_sha256": "c", "preprocessing": "p", "dtype": "fp32"}


def summary(*rows: tuple[str, str | None, float]) -> Summary:
    """Rows of (image, prompt, score) of the reward `toy`; an image's name without its last letter is its content."""
    found = Summary()
    table = [
        {"image": i, "image_sha256": i[:-1], "prompt": p, "reward": "toy", "score": s, **ABOUT} for i, p, s in rows
    ]
    found.add(pa.Table.from_pylist(table, tables.SCHEMA), labels([("toy", "m", "c")]))
    return found


def test_with_one_row_a_cluster_it_is_students_interval() -> None:
    """k / (k-1) x sum of squares / k^2 is the variance of the mean that everybody knows."""
    scores = np.random.default_rng(0).standard_normal(30)
    low, high = stats.t.interval(0.95, 29, scores.mean(), stats.sem(scores))
    assert interval(scores, np.arange(30)) == pytest.approx((low, high))


def test_copies_of_an_image_do_not_make_the_mean_surer() -> None:
    """Four copies of each row in its cluster: the same mean, the same interval."""
    scores = np.random.default_rng(1).standard_normal(10)
    assert interval(np.repeat(scores, 4), np.repeat(np.arange(10), 4)) == pytest.approx(interval(scores, np.arange(10)))


def test_the_interval_holds_what_it_says() -> None:
    """Over 400 draws of 12 prompts x 3 images with a prompt effect, 95% contain the truth within 3 standard errors."""
    random = np.random.default_rng(2)
    clusters = np.repeat(np.arange(12), 3)
    hits = 0
    for _ in range(400):
        low, high = interval(random.standard_normal(12)[clusters] + random.standard_normal(36), clusters)
        hits += low <= 0 <= high
    assert abs(hits / 400 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 400)


def test_one_image_has_no_interval() -> None:
    assert interval(np.array([1.0]), np.array([0])) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("rows", "clusters"),
    [
        ([("a1", "p", 1), ("b1", "p", 2), ("c1", "q", 4)], 2),  # images with prompts of their own: the prompt
        ([("a1", "p", 1), ("b1", "p", 2), ("c1", "p", 4)], 3),  # one prompt for all: the image
        ([("a1", None, 1), ("b1", None, 2), ("c1", None, 4)], 3),
        ([("a1", "p", 1), ("a2", "p", 1), ("b1", "p", 4)], 2),  # the same content twice is one image
        ([(i, p, n) for n, (i, p) in enumerate(product(("a1", "b1", "c1"), "pq"))], 3),  # a matrix: the image
    ],
)
def test_what_was_drawn_independently(rows: list, clusters: int) -> None:
    found = summary(*rows)
    assert len(np.unique(found._clusters("toy"))) == clusters


def test_numbers_of_a_reward_and_its_bounds() -> None:
    """0, 0, 1: mean 1/3, standard deviation 1/sqrt(3); the interval is cut at the bounds of the reward."""
    found = summary(("a1", "p", 0), ("b1", "p", 0), ("c1", "p", 1)).of("toy", (0, 1))
    assert (found["n"], found["mean"], found["median"], found["min"], found["max"]) == (
        3,
        pytest.approx(1 / 3),
        0,
        0,
        1,
    )
    assert found["std"] == pytest.approx(3**-0.5)
    assert found["ci95"] == [0, 1]


def test_ranks() -> None:
    found = summary(("a1", "p", 2), ("b1", "q", 3), ("c1", "r", 1))
    best, worst = found.ranked("toy", range(2)), found.ranked("toy", [-1])
    assert [(one.image, one.prompt, one.score, one.place) for one in best] == [("b1", "q", 3, 0), ("a1", "p", 2, 1)]
    assert [(one.image, one.place) for one in worst] == [("c1", 2)]
    assert len(found.ranked("toy", range(99))) == 3


def test_two_rewards_of_one_name_are_told_apart() -> None:
    assert labels([("a", "m", "1"), ("a", "n", "2"), ("b", "m", "3")]) == {
        ("a", "m", "1"): "a (m)", ("a", "n", "2"): "a (n)", ("b", "m", "3"): "b",
    }  # fmt: skip
