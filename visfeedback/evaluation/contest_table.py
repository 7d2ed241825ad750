"""The table about several methods, for the page and for docs. May import: nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("method", "taught by", "fully right, base -> tuned, %", "points (95% interval)", "each seed", "win rate, %",
        "reward", "drift", "diversity", "images drawn", "seconds")  # fmt: skip


def table(methods: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Cells under ``HEAD``, one row for each method."""
    return [_row(name, found) for name, found in methods.items()]


def markdown(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """The table for docs."""
    rows = [HEAD, tuple("---" for _ in HEAD), *table(methods)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    reward = found["rewards"].get(found["reward"])
    shown = f"{found['reward']} {short(reward['base'])} -> {short(reward['tuned'])}" if reward else "none"
    diversity = found["diversity"]
    return (
        name, found["taught_by"], f"{100 * found['base']:.1f} -> {100 * found['tuned']:.1f}",
        f"{100 * found['delta']:+.1f}{between(found['delta_ci95'], 100, '+.1f')}",
        ", ".join(f"{100 * one['delta']:+.1f}" for one in found["per_seed"].values()),
        "none" if found["win_rate"] is None
        else f"{100 * found['win_rate']:.1f}{between(found['win_rate_ci95'], 100, '.1f')}",
        shown, f"{found['drift']:.2g}",
        "none" if diversity["base"] is None else f"{short(diversity['base'])} -> {short(diversity['tuned'])}",
        f"{found['images']:,.0f}", f"{found['seconds']:,.0f}",
    )  # fmt: skip


def short(value: float) -> str:
    """Three digits behind the point, without the zero before it: ``.648``."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3g}"


def between(interval: Sequence[float] | None, scale: float, form: str) -> str:
    """`` (low to high)``; empty when nothing is known."""
    return f" ({scale * interval[0]:{form}} to {scale * interval[1]:{form}})" if interval else ""
