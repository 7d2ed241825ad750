"""Judges: whoever compares images of one prompt and leaves feedback.

What lives here: one file per judge; which pairs to ask: `queue.py`, `active.py`; the tasks of people: `plan.py`.
To add one: a module with `Settings` (its knobs, among them `seed`) and `judge(argument, settings) -> Judge`, where
`argument` is what follows the colon in `--judge NAME:ARGUMENT`. Nothing is registered anywhere; `load` finds it.
May import: types, store, preferences, vlm, shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from visfeedback.plugins import InputError, names, nearest
from visfeedback.plugins import load as load_module

if TYPE_CHECKING:
    from visfeedback.types.protocols import Judge


def judges() -> list[str]:
    """The names that may stand before the colon, sorted."""
    return [name for name in names("feedback") if hasattr(load_module("feedback", name), "judge")]


def load(reference: str, **knobs: Any) -> Judge:
    """``load("simulated:shapes", seed=1, noise=0.1)``; knobs are the fields of the judge's `Settings`.

    Raises InputError for an unknown judge or knob, naming the nearest.
    """
    name, _, argument = reference.partition(":")
    if "." not in name and name not in judges():
        raise InputError(f"no judge {name!r}{nearest(name, judges())}")
    module = load_module("feedback", name)
    fields = module.Settings.model_fields
    unknown = [knob for knob in knobs if knob not in fields]
    if unknown:
        raise InputError(f"judge {name} has no {unknown[0]!r}{nearest(unknown[0], fields)}")
    try:
        return module.judge(argument, module.Settings(**knobs))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"judge {name}: {first['loc'][0]}: {first['msg']}, not {first['input']!r}") from None
