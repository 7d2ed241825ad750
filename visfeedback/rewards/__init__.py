"""Scorers of images against prompts: one file per reward, higher is better, native units.

To add one: ``visfeedback/rewards/NAME.py`` with ``ABOUT`` (its entry in the catalogue) and
``load(variant="", path="", device="cpu", dtype="fp32")`` that returns a Reward (``types/protocols.py``); the file name
is the name. What several rewards share is in files with an underscore. May import: types, shapes, preferences, vlm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from visfeedback import plugins
from visfeedback.plugins import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from visfeedback.types.protocols import Reward

Dtype = Literal["fp32", "bf16", "fp16"]


def load(reference: str, device: str = "cpu", dtype: Dtype = "fp32") -> Reward:
    """``NAME[:VARIANT][@PATH_OR_HUB]``, for example ``shapes_clip`` or ``aesthetic:v1@weights.pt``.

    Raises InputError for an unknown name, naming the nearest one, and for whatever the reward itself refuses.
    """
    head, _, path = reference.partition("@")
    name, _, variant = head.partition(":")
    if not name.strip("."):
        raise InputError(f"reward {reference!r} has no name; write NAME[:VARIANT][@PATH], for example shapes_clip")
    known = plugins.names("rewards")
    if name.startswith("_"):
        raise InputError(f"no {name!r} in rewards{plugins.nearest(name, known)}")
    opener = getattr(plugins.load("rewards", name), "load", None)
    if opener is None:
        raise InputError(f"{name} is no reward: it has no function load{plugins.nearest(name, known)}")
    return opener(variant=variant, path=path, device=device, dtype=dtype)


def score(
    reward: Reward, images: Sequence[Image], prompts: Sequence[str], pairing: Literal["paired", "matrix"] = "paired"
) -> Tensor:
    """Scores without a gradient, on the CPU: (N,) of each image against its own prompt, or (N, P) of all against all.

    For tens of images; ``visfeedback.scoring`` is for many.
    """
    import torch

    if pairing == "paired" and len(images) != len(prompts):
        raise InputError(f"{len(images)} images and {len(prompts)} prompts; expected one prompt for each image")
    shape = (len(images),) if pairing == "paired" else (len(images), len(prompts))
    scores = torch.empty(shape)
    with torch.no_grad():
        texts = reward.encode_texts(list(prompts))
        for rows, pixels in by_size([reward.preprocess(image) for image in images]):
            own = pick(texts, rows) if pairing == "paired" else texts
            scores[rows] = reward.combine(reward.encode_images(pixels), own, pairing).float().cpu()
    return scores


def by_size(pixels: Sequence[Tensor]) -> list[tuple[list[int], Tensor]]:
    """Preprocessed images -> (which they are, (N, C, H, W)) for each size, in the order of their first."""
    import torch

    rows: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(pixels):
        rows.setdefault(tuple(image.shape), []).append(row)
    return [(group, torch.stack([pixels[row] for row in group])) for group in rows.values()]


def pick(texts: Tensor | list, rows: Sequence[int]) -> Tensor | list:
    """Encoded prompts in another order, or repeated."""
    return [texts[row] for row in rows] if isinstance(texts, list) else texts[list(rows)]
