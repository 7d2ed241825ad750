"""The embedded world: 64 x 64 pictures of coloured shapes in which the whole river is real and measurable.

What lives here: the renderer, the grammar of prompts, the verifier that reads pixels back, simulated people, and the
small trained models that ship with the package (``models/``, each with a card).
To make the models again: ``python scripts/make_shapes_models.py``.
May import: types. It offers what every world offers: ``model_folder(part)`` and ``prompts(part)``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from visfeedback.plugins import InputError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

    from visfeedback.types.protocols import Verifier
    from visfeedback.types.records import Prompt

MODELS = Path(__file__).parent / "models"


def model_folder(part: str) -> Path:
    """Folder of a shipped model, for example ``sd``."""
    folder = MODELS / part
    if not part.isidentifier() or not folder.is_dir():
        known = [p.name for p in MODELS.iterdir() if p.is_dir()]
        raise InputError(f"the shapes world ships no model {part!r}{nearest(part, known)}")
    return folder


def prompts(part: str) -> list[Prompt]:
    """``train``, ``heldout``, or either with a number: ``heldout:64`` takes the first 64, balanced over categories."""
    from visfeedback.shapes import grammar

    split, _, number = part.partition(":")
    if split not in grammar.PER_CATEGORY or (number and not (number.isdecimal() and int(number) > 0)):
        raise InputError(f"no prompts 'shapes:{part}'; write shapes:train, shapes:heldout or shapes:heldout:64")
    listed = list(grammar.prompts(split))
    if number and int(number) > len(listed):
        raise InputError(f"shapes:{split} has {len(listed)} prompts, {number} were asked for; write shapes:{split}")
    return listed[: int(number)] if number else listed


def verifier() -> Verifier:
    """The program that reads a picture and says what of the prompt is right."""
    from visfeedback.shapes.verify import ShapesVerifier

    return ShapesVerifier()


def render_distance(image: Image) -> float:
    """RMS distance in [0, 1] to the render of what the verifier sees; high for blurred or broken pictures."""
    from visfeedback.shapes.verify import render_distance as distance

    return distance(image)
