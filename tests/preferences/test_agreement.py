"""Kappas and alpha against published examples and numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from visfeedback.preferences import agreement
from visfeedback.preferences.leaderboard import overview
from visfeedback.preferences.quality import People
from visfeedback.types.records import PAIR_VALUES, Feedback

KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]
"""The example of Krippendorff (2011): 4 observers, 12 units, 0 = missing. Nominal alpha .743, ordinal .815."""

FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
"""Ten subjects, fourteen raters, five categories, in wide use as an example: kappa .210."""


def test_alpha_of_the_published_example() -> None:
    ratings = np.array(KRIPPENDORFF).T - 1
    assert agreement.alpha(ratings) == pytest.approx(0.743, abs=5e-4)
    assert agreement.alpha(ratings, "ordinal") == pytest.approx(0.815, abs=5e-4)


def test_fleiss_of_the_published_example() -> None:
    assert agreement.fleiss(FLEISS) == pytest.approx(0.210, abs=5e-4)
    with pytest.raises(ValueError, match="same number"):
        agreement.fleiss([[2, 0], [1, 0]])


def test_cohen_by_hand() -> None:
    """Yes/no: both 20, only A 5, only B 10, neither 15. Seen .7; chance (25 30 + 25 20) / 50^2 = .5; kappa .4."""
    a = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15
    b = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert agreement.cohen(a, b) == pytest.approx(0.4)
    assert agreement.percent(np.array([a, b]).T) == pytest.approx(0.7)
    assert agreement.cohen([*a, -1], [*b, 1]) == pytest.approx(0.4), "what one left out does not count"


def test_where_nothing_is_defined() -> None:
    assert agreement.cohen([], []) is None
    assert agreement.cohen([1, 1], [1, 1]) is None
    assert agreement.alpha([[0, -1], [1, -1]]) is None
    assert agreement.fleiss(np.zeros((0, 2))) is None
    assert agreement.percent([[0, -1]]) is None


def vote(judge: str, choice: str, ids: tuple[str, str] = ("a", "b"), prompt: str = "p", **more: object) -> Feedback:
    common = {"judge": judge, "prompt_id": prompt, "sample_ids": ids, "choice": choice, "values": PAIR_VALUES[choice]}
    return Feedback.model_validate(common | more)


def test_answers_do_not_depend_on_which_image_was_called_a() -> None:
    """Ada says a of (a, b), Bob b of (b, a): they agree. On the next pair they do not: percent .5."""
    answers = agreement.Answers()
    for record in (
        vote("ada", "a"), vote("bob", "b", ("b", "a")), vote("ada", "a", prompt="q"), vote("bob", "tie", prompt="q"),
        vote("bob", "skip"), vote("ada", "b", gold=True), vote("eve", "a", prompt="alone"),
    ):  # fmt: skip
        answers.add(record)
    found = answers.summary()
    assert (found["items"], found["judgements"], found["percent"]) == (2, 4, 0.5)


def test_people_by_hand() -> None:
    """Ada: left, left, right of 3 decided; 1 and 2 s; repeats one pair the same and one not; gold one of two right."""
    people = People()
    for record in (
        vote("ada", "a", sides=(0, 1), seconds=1.0), vote("ada", "a", sides=(0, 1), seconds=2.0),
        vote("ada", "b", sides=(0, 1)), vote("bob", "tie", sides=(1, 0)),
        vote("ada", "a", prompt="g", gold=True, extra={"expected": "a"}),
        vote("ada", "a", prompt="h", gold=True, extra={"expected": "b"}),
    ):  # fmt: skip
        people.add(record)
    ada = people.summary()["judges"]["ada"]
    assert (ada["left"]["share"], ada["left"]["n"], ada["median_seconds"]) == (2 / 3, 3, 1.5)
    assert (ada["repeats"]["share"], ada["repeats"]["n"]) == (0.5, 2)
    assert (ada["gold"]["share"], ada["gold"]["n"]) == (0.5, 2)
    assert people.summary()["left"]["n"] == 3


def test_flags_name_what_is_odd() -> None:
    """Twenty times left in half a second."""
    people = People()
    for i in range(20):
        people.add(vote("bot", "a", prompt=str(i), sides=(0, 1), seconds=0.5))
    assert people.summary()["judges"]["bot"]["flags"] == ["side", "hasty", "row"]


def test_overview_in_one_pass() -> None:
    """x beats y in 30 of 40; the rate is .75, the leader is x, "both bad" counts for both."""
    records = [vote(f"j{i % 5}", "a" if i < 30 else "b", prompt=str(i)) for i in range(40)]
    records.append(vote("j0", "both_bad", prompt="bad"))
    found = overview(iter(records), {"a": "x", "b": "y"}, resamples=50)
    assert [row["model"] for row in found["leaderboard"]] == ["x", "y"]
    assert found["leaderboard"][0]["wins"] == 30
    assert found["win_rates"]["x"]["y"] == {"rate": pytest.approx(30.5 / 41), "n": 41}
    assert found["both_bad"]["x"]["share"] == pytest.approx(1 / 41)
    assert found["votes_on_models"] == 41
