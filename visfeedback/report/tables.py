"""Tables that several pages share. May import: types."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from visfeedback.report.blocks import Table


def settings_table(settings: BaseModel | Mapping[str, Any], caption: str = "") -> Table:
    """Every knob and its value, sections as dotted names: `optim.steps | 300`."""
    values = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    return Table((), tuple((key, _text(value)) for key, value in flat(values)), caption, words=True)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested tables."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any], aside: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first dotted key whose values differ, and both values, None for a missing one; keys of ``aside`` may."""
    old, new = dict(flat(before)), dict(flat(now))
    differing = (key for key in [*new, *old] if old.get(key) != new.get(key) and key not in aside)
    return next(((key, old.get(key), new.get(key)) for key in differing), None)


def _text(value: Any) -> str:
    if value is None or value == "" or value == [] or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
