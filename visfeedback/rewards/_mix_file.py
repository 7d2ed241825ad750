"""What a mix of rewards is made of, as data: parts with weights and normalisations, read from a TOML file.

May import: types.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from visfeedback.plugins import InputError, nearest
from visfeedback.types.records import Frozen

NEEDS: dict[str, tuple[str, ...]] = {"none": (), "zscore": ("mean", "std"), "minmax": ("low", "high")}
"""Normalisation -> the numbers it needs."""


class Part(Frozen):
    """One reward's share in a mix."""

    reward: str
    """NAME[:VARIANT][@PATH_OR_HUB]"""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """may be negative: less of it is better"""
    normalise: Literal["none", "zscore", "minmax"] = "none"
    """none: native units; zscore: (score - mean) / std; minmax: (score - low) / (high - low)"""
    mean: float | None = Field(default=None, allow_inf_nan=False)
    """for zscore"""
    std: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """for zscore"""
    low: float | None = Field(default=None, allow_inf_nan=False)
    """for minmax: becomes 0"""
    high: float | None = Field(default=None, allow_inf_nan=False)
    """for minmax: becomes 1"""

    @model_validator(mode="after")
    def _has_its_numbers(self) -> Part:
        wanted = NEEDS[self.normalise]
        missing = [name for name in wanted if getattr(self, name) is None]
        if missing:
            raise ValueError(f"normalise = {self.normalise!r} needs {' and '.join(wanted)}; add {missing[0]}")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        return self

    def normalised(self, score: float) -> float:
        """One score as the mix adds it."""
        if self.normalise == "zscore":
            return (score - (self.mean or 0.0)) / (self.std or 1.0)
        if self.normalise == "minmax":
            return (score - (self.low or 0.0)) / ((self.high or 0.0) - (self.low or 0.0))
        return score


class Recipe(Frozen):
    """What a mix's file holds."""

    parts: tuple[Part, ...] = Field(min_length=1)
    pessimism: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """standard deviations of disagreement that are taken off"""

    @model_validator(mode="after")
    def _weighs_something(self) -> Recipe:
        if not any(part.weight for part in self.parts):
            raise ValueError("all weights are 0; give one part a weight")
        return self

    def bounds(self, ranges: list[tuple[float, float]]) -> tuple[float, float]:
        """Bounds of the mix from the parts' own."""
        ends = [[part.weight * part.normalised(bound) for bound in bounds] for part, bounds in self._voting(ranges)]
        low, high = sum(map(min, ends)), sum(map(max, ends))
        if self.pessimism:
            low -= self.pessimism * sum(abs(part.weight) for part in self.parts) * self.disagreement(ranges)
        return low, high

    def disagreement(self, ranges: list[tuple[float, float]]) -> float:
        """The most there can be, from the parts' own bounds: half the span of all votes."""
        votes = [math.copysign(1, p.weight) * p.normalised(bound) for p, pair in self._voting(ranges) for bound in pair]
        return (max(votes) - min(votes)) / 2

    def _voting(self, ranges: list[tuple[float, float]]) -> list[tuple[Part, tuple[float, float]]]:
        return [(part, bounds) for part, bounds in zip(self.parts, ranges, strict=True) if part.weight]


def read(file: Path) -> Recipe:
    """What a mix's file says. Raises InputError: one line with the key that is wrong."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no file {file}; a mix is a TOML file with [[parts]], each with reward and weight") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file} is not a TOML file: {why}") from None
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise InputError(f"{file}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """``unknown key parts.0.weigth; did you mean 'weight'?``"""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = Part if len(place) > 1 else Recipe
        return f"unknown key {'.'.join(place)}{nearest(place[-1], model.model_fields)}"
    said = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(place)}: {said}" if place else said
