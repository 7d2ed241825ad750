"""Judgements of single images as numbers: likes, ratings, words."""

from __future__ import annotations

import pytest

from visfeedback.plugins import InputError
from visfeedback.preferences.weights import Label, labels_from_feedback, verbal_weight
from visfeedback.types.records import PAIR_VALUES, Feedback


def said(kind: str, sample: str, value: float, **more) -> Feedback:
    given = {"judge": "human:ada", "prompt_id": "p", **more}
    return Feedback(kind=kind, sample_ids=(sample,), values=(value,), **given)  # type: ignore[arg-type]


def test_words_weigh_as_in_lift_whatever_their_case_and_form():
    """.9, .2 and .05: (0.9 + 0.2 + 0.05) / 3 = 0.38333."""
    assert verbal_weight(["Good", "normal", "BAD."]) == pytest.approx(1.15 / 3)
    assert verbal_weight({"fidelity": "good", "semantics": "good"}) == pytest.approx(0.9)
    assert verbal_weight(["great"], {"Great": 1.0}) == 1.0


def test_unknown_and_missing_words_are_one_line():
    with pytest.raises(InputError, match=r"no grade 'god'; did you mean 'good'"):
        verbal_weight(["god"])
    with pytest.raises(InputError, match="no grade to weigh"):
        verbal_weight([])


def test_likes_ratings_words_and_both_bad_become_labels():
    """Image a: like 1, rating 2 of at least 3 is 0, so 1/2 of two votes; the others have one vote each."""
    records = [
        said("like", "a", 1), said("rating", "a", 2), said("rating", "b", 4), said("like", "c", -1),
        said("rating", "d", 1, extra={"grades": {"one": "Good", "two": "Bad"}}),
        Feedback(judge="human:ada", prompt_id="p", sample_ids=("e", "f"), choice="both_bad",
                 values=PAIR_VALUES["both_bad"]),
    ]  # fmt: skip
    labels, dropped = labels_from_feedback(records)
    assert labels == [
        Label("a", "p", 0.5, 2), Label("b", "p", 1.0, 1), Label("c", "p", 0.0, 1),
        Label("d", "p", pytest.approx(0.475), 1), Label("e", "p", 0.0, 1), Label("f", "p", 0.0, 1),
    ]  # fmt: skip
    assert dropped == {}
    assert labels_from_feedback(records[::-1])[0] == labels, "the order of the records makes no difference"


def test_what_says_nothing_about_one_image_is_counted_by_reason():
    kept = said("like", "a", 1)
    taken_back = said("like", "b", 1)
    records = [
        kept, taken_back, Feedback(kind="tombstone", judge="human:ada", retracts=taken_back.id),
        said("like", "c", 1, gold=True), said("like", "d", 1, criterion="colour"),
        Feedback(judge="human:ada", sample_ids=("a", "b"), choice="a", values=(1.0, 0.0)),
        Feedback(judge="human:ada", sample_ids=("a", "b"), choice="skip"),
        Feedback(kind="text", judge="human:ada", sample_ids=("a",), note="nice"),
    ]  # fmt: skip
    labels, dropped = labels_from_feedback(records, criterion="overall")
    assert labels == [Label("a", "p", 1.0, 1)]
    assert dropped == {"comparison": 1, "criterion": 1, "gold": 1, "retracted": 1, "skip": 1, "text": 1}
