"""Records are frozen, refuse what does not fit together, and are named by their content."""

from __future__ import annotations

from datetime import UTC

import pytest
from pydantic import ValidationError

from visfeedback.types.records import PAIR_VALUES, Choice, Feedback, Preference, Prompt, image_id, text_id


def test_prompt_ids_name_text_and_negative() -> None:
    """The negative prompt is part of what is drawn; category and split are not."""
    assert Prompt.of("a").id == Prompt.of("a", category="colors", split="heldout").id
    assert Prompt.of("a").id != Prompt.of("a", negative="b").id
    assert text_id("ab", "c") != text_id("a", "bc")
    assert len(Prompt.of("a").id) == 16


def test_image_ids_know_the_shape() -> None:
    """The same 6 bytes are a 2x1 and a 1x2 picture: two ids."""
    assert image_id(2, 1, b"abcdef") != image_id(1, 2, b"abcdef")


def test_records_are_frozen_and_strict() -> None:
    with pytest.raises(ValidationError):
        Prompt.of("a").text = "b"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError):
        Prompt(id="x", text="a", colour="red")  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValidationError):
        Prompt.of("")


@pytest.mark.parametrize(
    "fields",
    [
        {"sample_ids": ("a",), "choice": "a"},
        {"sample_ids": ("a", "b")},
        {"sample_ids": ("a", "b"), "choice": "a", "values": (1.0,)},
        {"sample_ids": ("a", "b"), "choice": "a", "sides": (0,)},
        {"kind": "tombstone"},
    ],
)
def test_feedback_that_does_not_fit_together(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Feedback.model_validate({"judge": "human:ada", **fields})


def test_feedback_has_an_id_and_a_utc_time() -> None:
    pair = Feedback(judge="human:ada", sample_ids=("a", "b"), choice="tie", values=(0.5, 0.5))
    assert pair.id != Feedback(judge="human:ada", sample_ids=("a", "b"), choice="tie").id
    assert pair.created_at.tzinfo is UTC
    assert Feedback.model_validate_json(pair.model_dump_json()) == pair
    assert Feedback(judge="human:ada", kind="tombstone", retracts=pair.id).retracts == pair.id


def test_every_choice_has_values_that_add_up() -> None:
    """Shares of a pair add up to 1, or there are none (skip, flag)."""
    assert set(PAIR_VALUES) == set(Choice.__args__)
    assert all(sum(values) == 1 for values in PAIR_VALUES.values() if values)


def test_a_winner_wins_at_least_half_the_time() -> None:
    with pytest.raises(ValidationError):
        Preference(winner="a", loser="b", prompt_id="p", probability=0.4)
