"""A judge's name tells it from every other judge: what one has answered, another with other knobs has not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def differing(judge: Any, usual: Any, knobs: Iterable[str]) -> str:
    """``,noise=0.2,tie_band=0.1``: the knobs whose value is not the usual one; empty for the usual judge."""
    values = {knob: getattr(judge, knob) for knob in knobs if getattr(judge, knob) != getattr(usual, knob)}
    return "".join(f",{knob}={_word(value)}" for knob, value in values.items())


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return "+".join(f"{key}:{weight!r}" for key, weight in sorted(value.items()))
    return repr(value)
