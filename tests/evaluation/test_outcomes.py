"""The arithmetic of a summary, on hand-made outcomes."""

from __future__ import annotations

import pytest

from visfeedback.evaluation.outcomes import Outcome, Seen, summarise


def _seen(right: bool | None, reward: float = 0.0, **aspects: bool) -> Seen:
    return Seen(sample_id="s", path="p.png", right=right, aspects=aspects, rewards={"clip": reward})


def _outcome(prompt: str, category: str, base: bool | None, tuned: bool | None, win: float | None = None) -> Outcome:
    return Outcome(prompt_id=prompt, prompt=prompt, category=category, base=_seen(base, 0.1, color=bool(base)),
                   tuned=_seen(tuned, 0.3, color=bool(tuned)), win=win)  # fmt: skip


ROWS = [
    _outcome("a", "colors", False, True, 1.0),
    _outcome("a", "colors", True, True, 0.5),
    _outcome("b", "colors", False, False, None),
    _outcome("b", "colors", False, True, 1.0),
    _outcome("c", "counting", True, False, 0.0),
    _outcome("c", "counting", True, True, 0.5),
]


@pytest.fixture(scope="module")
def summary():
    return summarise(ROWS, resamples=500)


def test_accuracy_weighs_categories_the_same(summary):
    """Base: colors 1/4, counting 2/2: category mean .625, image mean 3/6. Tuned: 3/4 and 1/2: .625 and 4/6."""
    assert summary["base"]["accuracy"] == pytest.approx(0.625)
    assert summary["base"]["accuracy_images"] == pytest.approx(0.5)
    assert summary["tuned"]["accuracy"] == pytest.approx(0.625)
    assert summary["tuned"]["accuracy_images"] == pytest.approx(4 / 6)
    assert summary["base"]["per_category"]["colors"]["accuracy"] == pytest.approx(0.25)
    assert summary["base"]["per_category"]["colors"]["n"] == 4


def test_delta_is_the_difference_of_the_accuracies(summary):
    """colors +.5, counting -.5: zero on the whole, inside its interval."""
    assert summary["delta_of"] == "accuracy"
    assert summary["delta"] == pytest.approx(summary["tuned"]["accuracy"] - summary["base"]["accuracy"])
    assert summary["delta_ci95"][0] <= 0 <= summary["delta_ci95"][1]
    assert summary["delta_per_category"]["colors"]["delta"] == pytest.approx(0.5)


def test_win_rate_counts_ties_half_and_prompts_the_same(summary):
    """a: .75, b: 1 (one answer), c: .25; mean 2/3. The unanswered pair does not count."""
    assert summary["win_rate"] == pytest.approx(2 / 3)
    assert summary["judged_pairs"] == 5


def test_changes_aspects_and_rewards(summary):
    assert summary["changes"] == {"mended": 2, "still right": 2, "still wrong": 1, "broken": 1}
    assert summary["base"]["aspects"]["color"] == {"rate": 0.5, "n": 6}
    assert summary["tuned"]["rewards"]["clip"] == pytest.approx(0.3)


def test_without_a_verifier_the_first_reward_decides():
    """Every pair gains .2."""
    summary = summarise([_outcome("a", "", None, None), _outcome("b", "", None, None)], resamples=100)
    assert summary["base"]["accuracy"] is None
    assert summary["changes"] is None
    assert summary["delta_of"] == "reward clip"
    assert summary["delta"] == pytest.approx(0.2)
    assert summary["win_rate"] is None


def test_one_prompt_has_no_interval():
    """Two images of one prompt, both mended, both won: the difference is 1, how sure is unknown."""
    summary = summarise([_outcome("a", "colors", False, True, 1.0)] * 2, resamples=100)
    assert (summary["delta"], summary["delta_ci95"], summary["win_rate_ci95"]) == (1.0, None, None)
    assert summary["base"]["accuracy_ci95"] is None
    assert summary["delta_per_category"]["colors"] == {"delta": 1.0, "n": 2, "ci95": None}
    assert summary["tuned"]["per_category"]["colors"]["ci95"][0] < 0.3, "Wilson of one trial: from .207 to 1"


def test_a_prompt_in_each_category_is_no_certainty():
    """Gains 1 and 0 of two prompts in two categories: the mean .5 is not known exactly."""
    rows = [_outcome("a", "colors", False, True), _outcome("b", "counting", True, True)]
    low, high = summarise(rows, resamples=500)["delta_ci95"]
    assert low < 0.1 and high > 0.9


def test_nothing_to_summarise():
    with pytest.raises(ValueError, match="no outcomes"):
        summarise([])
