"""Feedback -> preferences: means that can be checked by hand, and laws (order does not matter, nothing vanishes)."""

from __future__ import annotations

import random

import pytest

from visfeedback.preferences.pairs import pairs_from_feedback
from visfeedback.types.records import PAIR_VALUES, Feedback, Preference


def vote(choice: str, name: str = "", a: str = "x", b: str = "y", **more: object) -> Feedback:
    fields = {"judge": "j", "prompt_id": "p", "sample_ids": (a, b), "choice": choice, "values": PAIR_VALUES[choice]}
    return Feedback.model_validate({**fields, **({"id": name} if name else {}), **more})


def many(kind: str, values: tuple[float, ...], ids: str = "xyz", **more: object) -> Feedback:
    fields = {"judge": "j", "prompt_id": "p", "kind": kind, "sample_ids": tuple(ids), "values": values}
    return Feedback.model_validate(fields | more)


def outcomes(preferences: list[Preference]) -> list[tuple[str, str, float]]:
    return [(p.winner, p.loser, p.probability) for p in preferences]


def test_one_vote_is_one_preference() -> None:
    preferences, dropped = pairs_from_feedback([vote("b", "v1")])
    expected = Preference(winner="y", loser="x", prompt_id="p", feedback_ids=("v1",))
    assert (preferences, dropped) == ([expected], {})


def test_votes_of_one_pair_are_averaged_whichever_way_round() -> None:
    """a, a, and once with the images exchanged b (the same winner), and a tie: (1 + 1 + 1 + .5) / 4 = .875."""
    votes = [vote("a"), vote("a"), vote("b", a="y", b="x"), vote("tie")]
    preferences, dropped = pairs_from_feedback(votes, weight="votes")
    assert outcomes(preferences) == [("x", "y", 0.875)]
    assert preferences[0].weight == 4
    assert dropped == {}
    assert pairs_from_feedback(votes)[0][0].weight == 1


def test_soft_values_are_used_as_they_are() -> None:
    preferences, _ = pairs_from_feedback([vote("a", values=(0.7, 0.3)), vote("b", values=(0.4, 0.6))])
    assert outcomes(preferences) == [("x", "y", pytest.approx(0.55))]


def test_votes_without_values_follow_the_choice() -> None:
    assert outcomes(pairs_from_feedback([vote("b", values=())])[0]) == [("y", "x", 1.0)]


@pytest.mark.parametrize(
    ("votes", "reason"),
    [(["tie", "both_bad"], {"tie": 2}), (["a", "b"], {"split": 2}), (["a", "tie", "b"], {"split": 3})],
)
def test_balanced_pairs_are_dropped_or_kept(votes: list[str], reason: dict[str, int]) -> None:
    feedback = [vote(choice) for choice in votes]
    assert pairs_from_feedback(feedback) == ([], reason)
    preferences, dropped = pairs_from_feedback(feedback, ties="keep")
    assert (outcomes(preferences), dropped) == ([("x", "y", 0.5)], {})


def test_what_says_nothing_is_dropped_and_counted() -> None:
    """Gold items test the judge and train nobody; a retracted vote is gone although its tombstone comes first."""
    feedback = [
        Feedback(kind="tombstone", judge="j", retracts="gone"),
        vote("a", "gone"), vote("skip"), vote("flag"), vote("a", gold=True), vote("a", a="x", b="x"), vote("a"),
    ]  # fmt: skip
    preferences, dropped = pairs_from_feedback(feedback)
    assert outcomes(preferences) == [("x", "y", 1.0)]
    assert dropped == {"flag": 1, "gold": 1, "retracted": 1, "same image": 1, "skip": 1}


def test_a_ranking_is_all_its_pairs() -> None:
    """Ranks x 0, y 1, z 1: x beats both, y and z are a tie."""
    preferences, dropped = pairs_from_feedback([many("ranking", (0, 1, 1))])
    assert outcomes(preferences) == [("x", "y", 1.0), ("x", "z", 1.0)]
    assert dropped == {"tie": 1}


def test_a_rating_of_several_is_all_its_pairs_higher_is_better() -> None:
    preferences, _ = pairs_from_feedback([many("rating", (2, 5, 3))])
    assert outcomes(preferences) == [("y", "x", 1.0), ("z", "x", 1.0), ("y", "z", 1.0)]


def test_single_ratings_meet_those_of_the_same_judge_and_prompt() -> None:
    """j: x = mean(1, 2) = 1.5, y = 4. Judge k rated only z, prompt q has only w: nothing to compare them to."""
    feedback = [
        many("rating", (1,), "x"), many("rating", (2,), "x"), many("rating", (4,), "y"),
        many("rating", (5,), "z", judge="k"), many("rating", (5,), "w", prompt_id="q"),
    ]  # fmt: skip
    preferences, dropped = pairs_from_feedback(feedback)
    assert outcomes(preferences) == [("y", "x", 1.0)]
    assert len(preferences[0].feedback_ids) == 3
    assert dropped == {"alone": 2}


def test_likes_beat_dislikes() -> None:
    feedback = [many("like", (1,), "x"), many("like", (-1,), "y"), many("like", (1,), "z")]
    preferences, dropped = pairs_from_feedback(feedback)
    assert outcomes(preferences) == [("x", "y", 1.0), ("z", "y", 1.0)]
    assert dropped == {"tie": 1}


def test_criteria_and_prompts_are_kept_apart() -> None:
    feedback = [vote("a"), vote("b", criterion="style"), vote("b", prompt_id="q")]
    preferences, dropped = pairs_from_feedback(feedback)
    assert [(p.prompt_id, p.criterion, p.winner) for p in preferences] == [
        ("p", "overall", "x"), ("p", "style", "y"), ("q", "overall", "y"),
    ]  # fmt: skip
    assert dropped == {}
    preferences, dropped = pairs_from_feedback(feedback, criterion="style")
    assert (outcomes(preferences), dropped) == ([("y", "x", 1.0)], {"criterion": 2})


def test_the_order_of_the_feedback_does_not_matter() -> None:
    """200 random records, shuffled: the same preferences, bit for bit, and the same counts."""
    rng = random.Random(0)
    feedback = []
    for i in range(200):
        a, b = rng.sample("uvwxyz", 2)
        values = (share := rng.random(), 1 - share)
        feedback.append(vote("a" if share > 0.5 else "b", f"v{i}", a, b, values=values, prompt_id=rng.choice("pq")))
    first = pairs_from_feedback(feedback, ties="keep", weight="votes")
    rng.shuffle(feedback)
    assert pairs_from_feedback(feedback, ties="keep", weight="votes") == first
    assert sum(p.weight for p in first[0]) == 200, "every vote is somewhere"


def test_no_feedback_is_no_preferences() -> None:
    assert pairs_from_feedback([]) == ([], {})
