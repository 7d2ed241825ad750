"""Pictures that a world draws of its prompts by itself: what a model of that world should look like.

May import: types, shapes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visfeedback.plugins import InputError
from visfeedback.sampling.generate import derive_seed
from visfeedback.shapes.grammar import read
from visfeedback.shapes.renderer import draw_scene, render_image
from visfeedback.types.files import write_atomic
from visfeedback.types.records import Prompt

METADATA = "metadata.jsonl"


def write_renders(prompts: Sequence[Prompt], count: int, seed: int, out: Path) -> Path:
    """``count`` renders of every prompt of the shapes world in ``out``, listed last in metadata.jsonl.

    Raises InputError for a prompt that this world cannot read.
    """
    rows: list[dict[str, str]] = []
    for prompt in prompts:
        try:
            spec = read(prompt.text)
        except InputError as error:
            raise InputError(f"data.real = renders: {error}; name real images, or none: --data.real ''") from None
        for k in range(count):
            scene = draw_scene(spec, np.random.default_rng(derive_seed(seed, f"render {prompt.id}", k)))
            buffer, name = io.BytesIO(), f"{prompt.id}-{k}.png"
            render_image(scene).save(buffer, "PNG")
            write_atomic(out / name, buffer.getvalue())
            rows.append({"file_name": name, "prompt": prompt.text})
    write_atomic(out / METADATA, "".join(json.dumps(row) + "\n" for row in rows))
    return out
