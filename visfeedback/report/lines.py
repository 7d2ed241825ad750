"""Plots of several things at once: lines that share axes, and small panels with two quantities each.

As in ``plots.py`` the ink follows the page; the lines' own colours are read on light and on dark. May import: types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from visfeedback.report.blocks import Figure
from visfeedback.report.plots import BASE, DPI, INK, MUTED, STYLE, TUNED, WIDTH, _canvas, _svg

Line = Sequence[tuple[float, float]]
"""(x, y) points in order"""

PALETTE = ("#4a86c5", "#e0803a", "#3f9a5b", "#c0517f", "#8a6fc4", "#b39a2e", "#2fa3a8", "#9a6a4f", "#7f8790", "#d05a4e")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">")
"""colour and shape say the same, for eyes that see one of them"""
COLUMNS = 2
PANEL = 150


def lines(
    name: str, title: str, series: Mapping[str, Line], x: str, y: str, *, reference: float | None = None,
    caption: str = "",
) -> Figure:  # fmt: skip
    """One line with marks for each of ``series``, a legend, and a dashed line at ``reference``."""
    rows = -(-len(series) // 3)
    with matplotlib.rc_context(STYLE):
        canvas, axes = _canvas(WIDTH, 230 + 18 * rows)
        axes.grid(axis="y", linewidth=0.8)
        for number, points in enumerate(series.values()):
            _line(axes, points, number)
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _legend(canvas, [(label, *_look(number)) for number, label in enumerate(series)], 3)
        words = "; ".join(f"{label} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for label, line in series.items())
        return Figure(title, _svg(canvas, name, f"{title}: {words}"), caption)


def panels(
    name: str, title: str, groups: Mapping[str, Mapping[str, Sequence[Line]]], x: str, y: str, *, caption: str = ""
) -> Figure:
    """A panel for each group, all on the same axes; in each the lines of at most two quantities, told apart by colour
    and mark. ``groups[panel][quantity]`` is one line for each repetition."""
    quantities = list(dict.fromkeys(label for lines in groups.values() for label in lines))
    looks = dict(zip(quantities, ((TUNED, "D"), (BASE, "o")), strict=False))
    rows = -(-len(groups) // COLUMNS)
    with matplotlib.rc_context({**STYLE, "font.size": 9}):
        canvas = Canvas(figsize=(WIDTH / DPI, (PANEL * rows + 40) / DPI), dpi=DPI, layout="constrained")
        FigureCanvasSVG(canvas)
        grid: Any = canvas.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
        for axes, (label, content) in zip(grid, groups.items(), strict=False):
            _panel(axes, label, content, looks)
        for axes in grid[len(groups) :]:
            axes.set_visible(False)
        for axes in grid[max(0, len(groups) - COLUMNS) : len(groups)]:
            axes.tick_params(labelbottom=True)
        canvas.supxlabel(x, color=MUTED, fontsize=10)
        canvas.supylabel(y, color=MUTED, fontsize=10)
        _legend(canvas, [(label, *look) for label, look in looks.items()], COLUMNS)
        return Figure(title, _svg(canvas, name, f"{title}: {_ends(groups)}"), caption)


def _panel(axes: Axes, label: str, content: Mapping[str, Sequence[Line]], looks: Mapping[str, tuple[str, str]]) -> None:
    axes.set_facecolor("none")
    axes.set_title(label, fontsize=10, color=INK, loc="left", parse_math=False)
    axes.axhline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.locator_params(axis="x", nbins=4)
    for quantity, repetitions in content.items():
        colour, mark = looks[quantity]
        for points in repetitions:
            axes.plot(*zip(*points, strict=True), color=colour, marker=mark, markersize=3.5, linewidth=1.4, alpha=0.85)


def _line(axes: Axes, points: Line, number: int) -> None:
    colour, mark = _look(number)
    axes.plot(*zip(*points, strict=True), color=colour, marker=mark, markersize=4.5, linewidth=1.8)


def _look(number: int) -> tuple[str, str]:
    return PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]


def _legend(canvas: Canvas, entries: Sequence[tuple[str, str, str]], columns: int) -> None:
    handles = [Line2D([], [], color=colour, marker=mark, markersize=4.5, linewidth=1.8) for _, colour, mark in entries]
    shown: Any = canvas.legend(
        handles, [label for label, *_ in entries], loc="outside upper left", ncols=columns, frameon=False, fontsize=9,
        labelcolor=INK, handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip
    for text in shown.get_texts():
        text.set_parse_math(False)


def _ends(groups: Mapping[str, Mapping[str, Sequence[Line]]]) -> str:
    """Where the lines of each panel end, in words."""
    parts = [
        f"{label}: " + ", ".join(f"{what} {sum(line[-1][1] for line in found) / len(found):+.2f}"
                                 for what, found in content.items() if found)
        for label, content in groups.items()
    ]  # fmt: skip
    return "; ".join(parts)
