"""Which pairs are asked: of one prompt, different, once, evenly spread, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Literal

import pytest

from visfeedback.feedback import queue
from visfeedback.plugins import InputError
from visfeedback.types.records import Sample

HOWS: tuple[Literal["random", "all"], ...] = ("random", "all")


def samples(*sizes: int) -> list[Sample]:
    """Prompt p has ``sizes[p]`` images."""
    return [
        Sample(id=f"{p}-{k}", prompt_id=f"p{p}", prompt=f"{p}", path="", width=8, height=8)
        for p, size in enumerate(sizes)
        for k in range(size)
    ]


def keys(pairs: list[queue.Pair]) -> list[frozenset[str]]:
    return [frozenset((a.id, b.id)) for a, b in pairs]


@pytest.mark.parametrize("how", HOWS)
def test_without_n_every_pair_comes_once(how: Literal["random", "all"]) -> None:
    """Sizes 4, 2, 1, 3 have 6 + 1 + 0 + 3 = 10 pairs."""
    listed = samples(4, 2, 1, 3)
    found = queue.pairs(listed, how)
    expected = {frozenset((a.id, b.id)) for a, b in combinations(listed, 2) if a.prompt_id == b.prompt_id}
    assert len(found) == 10
    assert set(keys(found)) == expected


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("n", [1, 5, 7, 14, 20, 100])
def test_pairs_are_spread_evenly(how: Literal["random", "all"], n: int) -> None:
    """Five prompts with 6 pairs each and one with 1: counts differ by at most one where a prompt has pairs left."""
    found = queue.pairs(samples(4, 4, 4, 2, 4, 4), how, n)
    assert len(found) == len(set(keys(found))) == min(n, 31)
    counts = Counter(a.prompt_id for a, _ in found)
    full = [counts[f"p{p}"] for p in (0, 1, 2, 4, 5)]
    assert max(full) - min(full) <= 1
    assert counts["p3"] == 1 or (counts["p3"] == 0 and max(full) == 1)


def test_every_beginning_is_spread_too() -> None:
    found = queue.pairs(samples(4, 4, 4), "random", 12)
    for start in range(0, 12, 3):
        assert {a.prompt_id for a, _ in found[start : start + 3]} == {"p0", "p1", "p2"}


def test_the_same_picture_twice_is_no_pair() -> None:
    listed = samples(2)
    assert len(queue.pairs([*listed, listed[0], listed[1]], "all")) == 1
    with pytest.raises(InputError, match="no prompt has two different images"):
        queue.pairs([listed[0], listed[0]], "all")


def test_the_seed_decides() -> None:
    listed = samples(*[6] * 10)
    first = queue.pairs(listed, "random", 20, seed=1)
    assert queue.pairs(listed, "random", 20, seed=1) == first
    assert queue.pairs(listed, "random", 20, seed=2) != first
    assert queue.pairs(listed, "all", 20, seed=1) == queue.pairs(listed, "all", 20, seed=2)


def test_pair_numbers_are_a_bijection() -> None:
    """The numbers 0 .. C(40,2)-1 give each of the 780 pairs once, first before second."""
    listed = samples(40)
    found = [queue._pair(listed, number) for number in range(780)]
    assert set(found_keys := keys(found)) == {frozenset((a.id, b.id)) for a, b in combinations(listed, 2)}
    assert len(found_keys) == 780
    big = range(10**6 + 5)
    for number in (0, 10**11, 10**6 * (10**6 - 1) // 2 - 1, 10**6 * (10**6 - 1) // 2):
        i, j = queue._pair(big, number)  # type: ignore[arg-type]
        assert 0 <= i < j and i + j * (j - 1) // 2 == number


def test_n_must_be_positive() -> None:
    with pytest.raises(InputError, match="at least 1"):
        queue.pairs(samples(2), "all", 0)
