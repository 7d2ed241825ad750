"""Pieces of the pages we write, inside the app: the same blocks, drawn by the same templates, in the same look.

``STYLE`` stands once in every tab; ``drawn(block, ...)`` and the words below are what goes into ``gr.HTML``. All texts
are escaped here or by the templates. May import: report.
"""

from __future__ import annotations

import io
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from visfeedback.report.blocks import Block, Picture
from visfeedback.report.grids import picture
from visfeedback.report.page import prose
from visfeedback.store.images import BadImage, decode, read

LIGHT = (
    "--paper: transparent; --card: var(--block-background-fill, #fff); --ink: #1d1c1a; --muted: #625d57; "
    "--line: #e3dfd8; --base: #8b857d; --tuned: #0b6b5b; --good: #17683a; --bad: #a5301e; --good-pale: #cfe8d6; "
    "--bad-pale: #f6d5ce; --plain-pale: #e6e2db; --plain-strong: #a39c92;"
)
DARK = (
    "--ink: #edebe7; --muted: #aaa59d; --line: #3a3835; --base: #938d85; --tuned: #52c7ad; --good: #74d197; "
    "--bad: #ff9480; --good-pale: #1f4029; --bad-pale: #552a21; --plain-pale: #34322f; --plain-strong: #6f6a63;"
)
OWN = """
.vf-page { color: var(--ink); font-size: 15px; line-height: 1.5; overflow-wrap: break-word; }
.vf-page > :first-child { margin-top: 0; } .vf-page > :last-child { margin-bottom: 0; }
.vf-page p { margin: 0 0 .6rem; }
.vf-page .say { padding: .7rem 1rem; border-radius: .6rem; background: var(--plain-pale); }
.vf-page .say.good { background: var(--good-pale); } .vf-page .say.bad { background: var(--bad-pale); }
.vf-page progress { width: 100%; height: 1rem; accent-color: var(--tuned); }
.vf-page pre { margin: 0 0 .8rem; padding: .8rem 1rem; border: 1px solid var(--line); border-radius: .6rem;
  font: 13px/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.vf-page .numbers { margin: 0 0 1.4rem; }
.vf-page .tag { white-space: normal; overflow-wrap: anywhere; }
.vf-page h3 { margin: 1.2rem 0 .4rem; }
.vf-page progress::-webkit-progress-bar { background: var(--plain-pale); border-radius: .5rem; }
.vf-page progress::-webkit-progress-value { background: var(--tuned); border-radius: .5rem; }
.vf-page progress { appearance: none; -webkit-appearance: none; border: 0; border-radius: .5rem; overflow: hidden; }
.vf-page progress::-moz-progress-bar { background: var(--tuned); }
.vf-blur img { filter: blur(10px); } .vf-blur .card:hover img, .vf-blur .card:focus-within img { filter: none; }
.vf-go { align-self: flex-end !important; flex: 0 0 auto !important; min-height: 2.75rem; }
"""
"""beside the style of our pages; the app's own classes"""


@cache
def style() -> str:
    """A <style> element: the pages' own style, inside .vf-page only, following the app's light and dark."""
    pages = (files("visfeedback.report") / "templates" / "style.css").read_text(encoding="utf-8")
    names = f".vf-page {{ {LIGHT} }} .dark .vf-page {{ {DARK} --card: var(--block-background-fill, #1d1c1b); }}"
    return f"<style>.vf-page {{ {pages} }} {OWN} {names}</style>"


@cache
def _templates() -> Environment:
    found = Environment(loader=PackageLoader("visfeedback.report"), autoescape=True, undefined=StrictUndefined)
    found.trim_blocks = found.lstrip_blocks = True
    found.filters["prose"] = prose
    return found


def drawn(*blocks: Block) -> str:
    """Blocks of a page as HTML."""
    return "\n".join(_templates().get_template(f"{block.kind}.html").render(block=block) for block in blocks)


def page(*pieces: str) -> str:
    """Pieces as the value of one ``gr.HTML``; empty when there is nothing to show."""
    inside = "\n".join(piece for piece in pieces if piece)
    return f'<div class="vf-page">{inside}</div>' if inside else ""


def say(text: str, tone: str = "plain") -> str:
    """A sentence in a box; ``tone`` good, bad, plain, or busy for what still goes on. Read out by screen readers when
    it changes."""
    return f'<p class="say {escape(tone)}" role="status">{escape(text)}</p>' if text else ""


def words(text: str, tag: str = "p") -> str:
    return f"<{tag}>{escape(text)}</{tag}>" if text else ""


def code(text: str) -> str:
    """Lines to copy."""
    return f"<pre>{escape(text)}</pre>"


def bar(done: int, whole: int, label: str) -> str:
    """A progress bar that says in words what it shows."""
    return f'<progress value="{done}" max="{max(whole, 1)}" aria-label="{escape(label)}"></progress>{words(label)}'


def opened(path: Path) -> Image.Image | None:
    """An image file; None when it is missing, half written or damaged."""
    try:
        return decode(read(path), path.name)
    except (BadImage, OSError):
        return None


def shown(path: Path, alt: str, **more: str) -> Picture | None:
    """An image file for a card."""
    image = opened(path)
    return picture(image, alt, **more) if image else None  # pyright: ignore[reportArgumentType]


def png(image: Image.Image) -> bytes:
    """Pixels only: no name, no prompt, no seed travels with them."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
