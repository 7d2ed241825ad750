"""Write one self-contained HTML page: light and dark, phone and desktop, paper too; nothing is fetched from anywhere.

What lives here: ``Page`` and ``write_page``, and ``standalone_svg`` for a figure outside a page. The blocks are in
``blocks.py``, their drawing in ``templates/``.
May import: types.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from visfeedback.report.blocks import Figure, Number, Section
from visfeedback.types.files import write_atomic


@dataclass(frozen=True)
class Page:
    """What stands on a page: ``title`` says the result, ``summary`` in a sentence or two how it came about."""

    title: str
    sections: Sequence[Section]
    eyebrow: str = ""
    summary: str = ""
    numbers: Sequence[Number] = ()
    written: datetime | None = None
    """UTC; None = now"""


def write_page(path: Path, page: Page) -> Path:
    """Render ``page`` and write it atomically; returns the path."""
    return write_atomic(Path(path), render_page(page))


def render_page(page: Page) -> str:
    """The page as one HTML text; all of its pictures, plots and styles are inside."""
    written = page.written or datetime.now(UTC)
    return _environment().get_template("page.html").render(page=page, written=written)


def standalone_svg(figure: Figure) -> str:
    """One figure as an SVG file of its own: the page's light colours on white, written out for readers that know no CSS
    variables, at the size it was drawn for."""
    opening, rest = figure.svg.removeprefix("<svg ").split(">", 1)
    size = re.match(r'viewBox="0 0 (\S+) (\S+)"', opening)
    assert size is not None, "plots.py always begins with a viewBox"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[1]}" height="{size[2]}" {opening}>'
    drawn = f'{head}<rect width="100%" height="100%" fill="#fff"/>{rest}'
    for name, colour in _light().items():
        drawn = drawn.replace(f"var({name})", colour)
    return drawn


@cache
def _light() -> dict[str, str]:
    """The page's colours by variable."""
    light = _environment().get_template("style.css").render().partition("@media")[0]
    return dict(re.findall(r"(--[\w-]+): (#\w+);", light))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("visfeedback.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    return environment


def prose(text: str) -> Markup:
    """Escape ``text`` and turn `words in backticks` into code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
