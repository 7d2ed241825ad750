"""The prompts of the shapes world."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from visfeedback import shapes
from visfeedback.plugins import InputError
from visfeedback.shapes import grammar


@pytest.mark.parametrize("category", grammar.CATEGORIES)
def test_every_sentence_is_read_back_as_what_was_written(category: str) -> None:
    for spec in grammar.specs(category)[::7]:
        for prefix in grammar.PREFIXES:
            assert grammar.read(grammar.write(spec, prefix)) == spec


def test_no_heldout_combination_is_ever_a_training_caption() -> None:
    heldout = {p.text for p in shapes.prompts("heldout")}
    for category in grammar.CATEGORIES:
        texts = {grammar.write(s, f) for s in grammar.split_specs(category, "train") for f in grammar.PREFIXES}
        assert not texts & heldout


def test_the_order_of_joined_objects_does_not_leak_a_combination() -> None:
    """ "a red circle and a blue square" and its mirror are one combination, so they fall on one side."""
    for spec in grammar.specs("two_objects")[::5]:
        mirror = grammar.Spec(spec.category, spec.items[::-1])
        assert grammar.split_of(spec) == grammar.split_of(mirror)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_category_is_at_least_a_tenth_of_a_split(split: str) -> None:
    prompts = shapes.prompts(split)
    counts = Counter(p.category for p in prompts)
    assert set(counts) == set(grammar.CATEGORIES)
    assert min(counts.values()) >= 0.1 * len(prompts)
    assert len({p.id for p in prompts}) == len(prompts)


def test_a_number_takes_the_first_prompts_with_the_categories_in_turn() -> None:
    first = shapes.prompts("heldout:14")
    assert [p.category for p in first] == list(grammar.CATEGORIES) * 2
    assert first == shapes.prompts("heldout")[:14]


@pytest.mark.parametrize("part", ["heldouts", "heldout:0", "heldout:x", "heldout:100000", ""])
def test_wrong_lists_are_refused_in_one_line(part: str) -> None:
    with pytest.raises(InputError) as error:
        shapes.prompts(part)
    assert "shapes:" in str(error.value) and "\n" not in str(error.value)


def test_what_the_world_cannot_say_is_refused_with_examples() -> None:
    with pytest.raises(InputError, match="cannot read the prompt 'a red dog'"):
        grammar.read("a red dog")


@pytest.mark.parametrize("text", ["two red circles left of a square", "a circle bigger than three squares"])
def test_a_relation_is_between_two_objects(text: str) -> None:
    """Which of two circles is meant? The verifier has one object for each side of a relation."""
    with pytest.raises(InputError, match="cannot read the prompt"):
        grammar.read(text)


def test_spelling_that_people_use_is_read() -> None:
    assert grammar.read("  A red  circle the same COLOUR as a square. ").relation == grammar.SAME_COLOR


def test_one_changed_word_gives_another_sentence_of_the_same_length() -> None:
    rng = np.random.default_rng(0)
    for prompt in shapes.prompts("heldout"):
        changed = grammar.change_one_word(prompt.text, rng)
        pairs = list(zip(prompt.text.split(), changed.split(), strict=True))
        assert sum(a != b for a, b in pairs if {a, b} != {"a", "an"}) == 1
        grammar.read(changed)
