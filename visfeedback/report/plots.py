"""Plots as inline SVG that take their colours from the page, so they follow light and dark.

Figures are drawn 340 px wide: as wide as a phone shows them, so their letters stay readable there.
Colours are placeholders while matplotlib draws and become CSS variables (`--ink`, `--tuned`, ...) in the SVG.
May import: types.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from visfeedback.report.blocks import Figure

COLOURS = {"--ink": "#010203", "--muted": "#040506", "--line": "#070809", "--base": "#0a0b0c", "--tuned": "#0d0e0f"}
INK, MUTED, LINE, BASE, TUNED = COLOURS.values()
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: the page's own font, selectable, small files
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "grid.color": LINE,
    "axes.axisbelow": True,
}
DPI = 72  # SVG points are then CSS px
WIDTH = 340
MANY = 20  # values from which a curve also gets its moving mean


@dataclass(frozen=True)
class Rate:
    """A share in [0, 1] with its 95% interval."""

    value: float
    low: float
    high: float


def curve(
    name: str, title: str, x: Sequence[float], y: Sequence[float], *, reference: float | None = None, caption: str = ""
) -> Figure:
    """One quantity over training steps: every value pale, their moving mean strong, a dashed line at ``reference``.

    ``name`` must be unique on its page (it prefixes the ids inside the SVG). Values that are not finite leave a gap.
    """
    values = np.asarray(y, float)
    values = np.where(np.isfinite(values), values, np.nan)
    many = len(values) > MANY
    with matplotlib.rc_context(STYLE):
        canvas, axes = _canvas(WIDTH, 190)
        axes.grid(axis="y", linewidth=0.8)
        axes.plot(x, values, color=BASE if many else TUNED, linewidth=0.8 if many else 2, alpha=0.55 if many else 1.0)
        if many:
            axes.plot(x, moving_mean(values, max(5, len(values) // 12)), color=TUNED, linewidth=2)
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel("step")
        finite = values[np.isfinite(values)]
        words = f"{title} over steps, " + (f"from {finite[0]:.3g} to {finite[-1]:.3g}" if len(finite) else "no values")
        return Figure(title, _svg(canvas, name, words), caption)


def moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of each value with up to ``width - 1`` before it; gaps (NaN) are left out."""
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known)
    sums[width:], counts[width:] = sums[width:] - sums[:-width], counts[width:] - counts[:-width]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def rates(name: str, title: str, groups: Mapping[str, Mapping[str, Rate]], *, caption: str = "") -> Figure:
    """Shares of several groups as dots with interval lines: ``groups[category]["base" | "tuned"]``."""
    with matplotlib.rc_context(STYLE):
        canvas, axes = _canvas(WIDTH, 34 + 33 * len(groups))
        for row, sides in enumerate(groups.values()):
            for side, colour, offset, marker in (("base", BASE, -0.15, "o"), ("tuned", TUNED, 0.15, "D")):
                if side in sides:
                    _rate(axes, sides[side], row + offset, colour, marker)
        names = [label.replace("_", " ") for label in groups]
        axes.set_yticks(range(len(groups)), names, color=INK, parse_math=False)  # a $ is a $
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
        axes.grid(axis="x", linewidth=0.8)
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        return Figure(title, _svg(canvas, name, _in_words(title, groups)), caption)


def _rate(axes: Axes, rate: Rate, height: float, colour: str, marker: str) -> None:
    axes.plot([rate.low, rate.high], [height, height], color=colour, linewidth=2.5, alpha=0.45, solid_capstyle="round")
    axes.plot([rate.value], [height], marker=marker, color=colour, markersize=6, linestyle="none")


def _in_words(title: str, groups: Mapping[str, Mapping[str, Rate]]) -> str:
    parts = [
        f"{category.replace('_', ' ')} " + ", ".join(f"{side} {rate.value:.0%}" for side, rate in sides.items())
        for category, sides in groups.items()
    ]
    return f"{title}: " + "; ".join(parts)


def histogram(
    name: str, title: str, values: Sequence[float], *, mean: float, low: float, high: float, caption: str = ""
) -> Figure:
    """How often which value was seen; a line at the ``mean``, a band over its interval (infinite ends are not drawn).

    Values are finite and at least one.
    """
    with matplotlib.rc_context(STYLE):
        canvas, axes = _canvas(WIDTH, 170)
        bins = int(np.clip(np.sqrt(len(values)) * 1.5, 6, 40))
        axes.grid(axis="y", linewidth=0.8)
        axes.hist(np.asarray(values, float), bins=bins, color=BASE, alpha=0.75, rwidth=0.92)
        if np.isfinite([low, high]).all():
            axes.axvspan(low, high, color=TUNED, alpha=0.22, linewidth=0)
        axes.axvline(mean, color=TUNED, linewidth=2)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylabel("images")
        words = f"{title}: {len(values)} values from {min(values):.3g} to {max(values):.3g}, mean {mean:.3g}"
        return Figure(title, _svg(canvas, name, words), caption)


def _canvas(width_px: float, height_px: float) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, layout="constrained")
    FigureCanvasSVG(canvas)
    axes = canvas.add_subplot()
    axes.set_facecolor("none")
    return canvas, axes


def _svg(canvas: Canvas, name: str, words: str) -> str:
    """The drawing as an inline element: scalable, colours by variable, ids prefixed by ``name``, described in words."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None, "matplotlib always writes a viewBox"
    opening = f'<svg viewBox="{size[0][9:-1]}" role="img" aria-label="{escape(words)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return opening + text[text.index(">") + 1 :]
