"""What rewards have besides their scores: banks and notices, their own and those of the rewards they are made of.

A bank is what a reward computed for an image and keeps between calls (``bank``, with a ``limit_mib`` that may change);
in a run over a list every image comes once, so that would only fill memory. A ``notice`` is a sentence that whoever
uses the scores should read: a licence. May import: types, rewards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from visfeedback.types.protocols import Reward


@contextmanager
def nothing_kept(rewards: Sequence[Reward]) -> Iterator[None]:
    """Inside the block no reward, nor one that it is made of, keeps anything; their limits come back after it."""
    found = [inner.bank for reward in rewards for inner in all_of(reward) if hasattr(inner, "bank")]
    limits = [bank.limit_mib for bank in found]
    for bank in found:
        bank.limit_mib = 0
    try:
        yield
    finally:
        for bank, limit in zip(found, limits, strict=True):
            bank.limit_mib = limit


def notices(rewards: Sequence[Reward]) -> list[str]:
    """Each once."""
    found = (getattr(inner, "notice", "") for reward in rewards for inner in all_of(reward))
    return [notice for notice in dict.fromkeys(found) if notice]


def all_of(reward: Any) -> Iterator[Any]:
    """The reward and the rewards inside it (parts of a mix, the base of a fit)."""
    yield reward
    for value in vars(reward).values():
        for inner in value if isinstance(value, list | tuple) else [value]:
            if hasattr(inner, "combine") and hasattr(inner, "encode_images"):
                yield from all_of(inner)
