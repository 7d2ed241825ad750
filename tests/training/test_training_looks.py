"""What is looked at beside training speaks for all prompts, and says how much it is."""

from __future__ import annotations

from itertools import combinations

import pytest

from visfeedback.training.data import Pair
from visfeedback.training.looks import HELD_OUT_DRAWS, held_out, looked_at, probe, spread, times


def all_pairs(prompts: int, images: int) -> list[Pair]:
    """Every pair among the images of each prompt, prompt by prompt, as a store gives them."""
    return [
        Pair(id=f"{p}-{a}-{b}", prompt=f"prompt {p}", winner=f"{p}-{a}", loser=f"{p}-{b}",
             winner_path="", loser_path="")
        for p in range(prompts) for a, b in combinations(range(images), 2)
    ]  # fmt: skip


def test_prompts_take_turns():
    """12 pairs of 5 prompts with 6 pairs each: 2 or 3 of each. The first 12 of the data would be 2 prompts."""
    picked = spread(all_pairs(5, 4), 12)
    counts = [sum(pair.prompt == f"prompt {p}" for pair in picked) for p in range(5)]
    assert sorted(counts) == [2, 2, 2, 3, 3] and len({pair.id for pair in picked}) == 12
    assert len(spread(all_pairs(2, 3), 99)) == 6, "all there are"
    assert spread([], 4) == []


def test_the_choice_follows_from_the_prompts_not_from_their_order():
    pairs = all_pairs(30, 2)
    assert {p.id for p in spread(pairs, 8)} == {p.id for p in spread(pairs[::-1], 8)}
    assert {p.id for p in spread(pairs, 8)} != {p.id for p in pairs[:8]}


def test_images_that_have_not_been_seen_come_first():
    """The pairs of 4 images: 01 02 03 12 13 23. After 01 only 23 shows nothing that has been seen. 16 prompts with 4
    images: 16 winners."""
    picked = spread(all_pairs(1, 4), 2)
    assert [(p.winner, p.loser) for p in picked] == [("0-0", "0-1"), ("0-2", "0-3")]
    winners = {pair.winner for pair, _ in probe(all_pairs(16, 4), 8)}
    assert len(winners) == 16


def test_what_is_looked_at_is_counted():
    """20 prompts with 1 pair: 16 images of 16 prompts, once each. 30 held-out pairs of 10 prompts at 4 draws."""
    train, held = all_pairs(20, 2), all_pairs(10, 3)
    assert looked_at(train, held, 8) == {
        "drift": {"images": 16, "prompts": 16, "draws": 1}, "holdout": {"pairs": 30, "prompts": 10, "draws": 4},
    }  # fmt: skip
    assert looked_at(train[:2], [], 8) == {"drift": {"images": 2, "prompts": 2, "draws": 8}}
    assert len(held_out(held)) == 30 * HELD_OUT_DRAWS


@pytest.mark.parametrize(("steps", "every", "expected"), [(100, 50, 2), (120, 50, 3), (100, 0, 1), (10, 50, 1)])
def test_how_often_a_run_looks(settings, steps, every, expected):
    """At every multiple, and after the last step."""
    assert times(settings(optim={"steps": steps}, engine={"drift_every": every})) == expected
