"""What a page shows of rounds of drawing, filtering and learning. May import: report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visfeedback.report.blocks import Section, Table

HEAD = ("round", "images drawn", "passing", "prompts with one", "diversity of the drawn", "fully right, held out",
        "gain", "drift")  # fmt: skip


def rounds_section(rounds: Sequence[dict[str, Any]]) -> Section:
    """One row a round; drawn with the model of the round before, evaluated with the one it left."""
    rows = tuple(_row(row) for row in rounds)
    lead = (
        "Each round draws with the model that the one before left; the last three columns are of the model it leaves."
    )
    return Section("Round by round", (Table(HEAD, rows),), lead)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    found = row["evaluation"]
    return (
        str(row["round"]), str(row["images"]), f"{row['passing']:.1%}", str(row["prompts_kept"]),
        _number(row["diversity"], ".3f"), _share(found["accuracy"], found["accuracy_ci95"]),
        _share(found["delta"], found["delta_ci95"], "+"), _number(found["drift"], ".3g"),
    )  # fmt: skip


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _share(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.1%}" + (f" ({interval[0]:{sign}.1%} to {interval[1]:{sign}.1%})" if interval else "")
