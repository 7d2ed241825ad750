"""The verifier of the shapes world as a reward: how much of the prompt holds, softly, in [0, 1].

A program, not a network: no gradient, and only prompts and pictures of that world. May import: types, shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visfeedback import shapes
from visfeedback.plugins import VERSION, InputError
from visfeedback.types.protocols import Verifier
from visfeedback.types.records import About, Origin

ABOUT = About(measures="how much of a prompt of the shapes world holds", licence="Apache-2.0")


class ShapesVerifier:
    """Reward protocol around ``shapes.verifier()``: the soft score of its verdict."""

    name = "shapes_verifier"
    range = (0.0, 1.0)
    differentiable = False
    reads_prompt = True
    preprocessing = "rgb-uint8"
    encoder = "pixels"
    origin = Origin(model="program", revision=VERSION)

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def preprocess(self, image: Image.Image) -> Tensor:
        """(3, H, W) uint8: the pixels as they are."""
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) uint8, unchanged: the verifier reads an image in the light of its prompt."""
        return pixels

    def encode_texts(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix. Raises InputError for a prompt of another world."""
        pictures = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
        if pairing == "paired":
            return torch.tensor([self._score(*pair) for pair in zip(texts, pictures, strict=True)])
        return torch.tensor([[self._score(text, picture) for text in texts] for picture in pictures])

    def _score(self, prompt: str, image: Image.Image) -> float:
        return self._verifier.verify(prompt, image).score


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> ShapesVerifier:
    """``device`` and ``dtype`` are accepted and ignored: a program runs on the CPU.

    Raises InputError for a variant or path.
    """
    if variant or path:
        raise InputError("shapes_verifier has no variants and no weights; write --reward shapes_verifier")
    return ShapesVerifier(shapes.verifier())
