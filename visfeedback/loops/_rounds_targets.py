"""Hidden images: what the user of some rounds has in mind for each prompt and only he sees.

The paper's second experiment took images that people had published with their prompts; here they come from files with
prompts, from a world's renderer, which fills in by chance what the prompt leaves open, or from the model itself.
May import: scoring, sampling, shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from visfeedback.plugins import InputError, split_reference, world
from visfeedback.sampling.fabric.references import read_reference
from visfeedback.sampling.generate import derive_seed
from visfeedback.scoring.settings import ScoreSettings
from visfeedback.scoring.sources import FileSource, FolderSource, ListSource, open_source
from visfeedback.types.records import Prompt

OWN = -1
"""in place of an image's number: seeds of hidden images are nobody else's"""

Hidden = Callable[[Prompt], Image.Image]
"""The image of a prompt, always the same. Raises InputError when there is none."""


def hidden(source: str, seed: int, draw: Callable[[Prompt, int], Image.Image]) -> Hidden:
    """``source``: `model`, a world, or images with prompts; ``draw(prompt, seed)`` is the model."""
    if source == "model":
        return lambda prompt: draw(prompt, derive_seed(seed, prompt.id, OWN))
    if split_reference(f"{source}:") is not None:
        return _rendered(source, seed)
    return _filed(source)


def _rendered(name: str, seed: int) -> Hidden:
    place = world(name).__name__
    grammar, renderer = import_module(f"{place}.grammar"), import_module(f"{place}.renderer")

    def render(prompt: Prompt) -> Image.Image:
        rng = np.random.default_rng(derive_seed(seed, prompt.id, OWN))
        return renderer.render_image(renderer.draw_scene(grammar.read(prompt.text), rng))

    return render


def _filed(source: str) -> Hidden:
    """The first image of a prompt counts."""
    opened = open_source(source, ScoreSettings()) if Path(source).expanduser().exists() else None
    if not isinstance(opened, FolderSource | ListSource | FileSource):
        raise InputError(
            f"no user.targets {source!r}; expected model, shapes, or a folder or .jsonl list of images with prompts"
        )
    items = [item for item in opened.items() if item.prompt and not item.error]
    places = {item.prompt: item.location for item in reversed(items)}

    def read(prompt: Prompt) -> Image.Image:
        if prompt.text not in places:
            raise InputError(f"{source} has no image of {prompt.text!r}; expected one for each prompt of [data]")
        return read_reference(places[prompt.text]).image

    return read
