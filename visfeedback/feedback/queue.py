"""Which pairs to ask: at random or all, spread evenly over the prompts. What is worth most: `active.py`."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from math import comb
from typing import Literal

from visfeedback.plugins import InputError
from visfeedback.types.records import Sample

Pair = tuple[Sample, Sample]


def pairs(
    samples: Iterable[Sample], how: Literal["random", "all"] = "random", n: int | None = None, seed: int = 0
) -> list[Pair]:
    """At most ``n`` pairs (None: all there are) of different images of the same prompt, no pair twice.

    The prompts take turns, so any beginning of the list is spread over the prompts as evenly as their images allow.
    ``random`` draws prompts and pairs by ``seed``; ``all`` goes through them in the order of ``samples``.
    Raises InputError when no prompt has two different images.
    """
    if n is not None and n < 1:
        raise InputError(f"n is {n}; ask for at least 1 pair")
    groups = [group for group in by_prompt(samples) if len(group) > 1]
    if not groups:
        raise InputError("no prompt has two different images; type generate --per-prompt 2 or more")
    rng = random.Random(seed)
    if how == "random":
        rng.shuffle(groups)
    shares = _shares([comb(len(group), 2) for group in groups], n)
    streams = [
        iter(_draw(group, share, rng) if how == "random" else combinations(group, 2))
        for group, share in zip(groups, shares, strict=True)
    ]
    return list(_take_turns(streams, shares))


def by_prompt(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Samples of each prompt without repeated images, both in the order of appearance."""
    groups: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt_id, {}).setdefault(sample.id, sample)
    return [list(group.values()) for group in groups.values()]


def _shares(available: Sequence[int], n: int | None) -> list[int]:
    """How many pairs each prompt gives: one each in turn, until ``n`` are found or all are used up."""
    shares = [0] * len(available)
    left = sum(available) if n is None else min(n, sum(available))
    while left:
        open_groups = [i for i, most in enumerate(available) if shares[i] < most]
        each = max(1, min(left // len(open_groups), min(available[i] - shares[i] for i in open_groups)))
        for i in open_groups[:left]:
            shares[i] += each
            left -= each
    return shares


def _draw(group: Sequence[Sample], count: int, rng: random.Random) -> list[Pair]:
    """``count`` different pairs; drawn by number, so a prompt with thousands of images costs nothing."""
    return [_pair(group, number) for number in rng.sample(range(comb(len(group), 2)), count)]


def _pair(group: Sequence[Sample], number: int) -> Pair:
    """Pair ``number`` in the order (0,1), (0,2), (1,2), (0,3), ...: the pairs that end in j begin at j(j-1)/2."""
    j = int(((8 * number + 1) ** 0.5 + 1) / 2)
    j += (number >= comb(j + 1, 2)) - (number < comb(j, 2))  # the root is a float
    return group[number - comb(j, 2)], group[j]


def _take_turns(streams: Sequence[Iterator[Pair]], shares: Sequence[int]) -> Iterator[Pair]:
    for turn in range(max(shares)):
        for stream, share in zip(streams, shares, strict=True):
            if turn < share:
                yield next(stream)
