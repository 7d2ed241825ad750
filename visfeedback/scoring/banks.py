"""Some rewards keep what they computed for an image between calls (``bank``, with a ``limit_mib`` that may change).

In a run over a list every image comes once, so that would only fill memory. May import: types, rewards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from visfeedback.types.protocols import Reward


@contextmanager
def nothing_kept(rewards: Sequence[Reward]) -> Iterator[None]:
    """Inside the block no reward, nor one that it is made of, keeps anything; their limits come back after it."""
    found = [bank for reward in rewards for bank in banks(reward)]
    limits = [bank.limit_mib for bank in found]
    for bank in found:
        bank.limit_mib = 0
    try:
        yield
    finally:
        for bank, limit in zip(found, limits, strict=True):
            bank.limit_mib = limit


def banks(reward: Any) -> Iterator[Any]:
    """The banks of a reward and of the rewards inside it (parts of a mix, the base of a fit)."""
    if hasattr(reward, "bank"):
        yield reward.bank
    for value in vars(reward).values():
        for inner in value if isinstance(value, list | tuple) else [value]:
            if hasattr(inner, "combine") and hasattr(inner, "encode_images"):
                yield from banks(inner)
