"""A taste as a reward with a gradient, loaded by its dotted name: how dark a picture's border is, from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from visfeedback.types.records import Origin


class DarkTaste:
    """Reward protocol, differentiable; reads no prompt."""

    name = "dark_taste"
    range = (0.0, 1.0)
    differentiable = True
    reads_prompt = False
    preprocessing = "unit-rgb"
    encoder = "border"
    origin = Origin(model="program")

    def preprocess(self, image: Image) -> Tensor:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 1) brightness of the outermost four pixels all around."""
        rows = torch.cat([pixels[..., :4, :], pixels[..., -4:, :]], dim=-2).flatten(1)
        columns = torch.cat([pixels[..., :4], pixels[..., -4:]], dim=-1).flatten(1)
        return torch.cat([rows, columns], dim=1).mean(1, keepdim=True)

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1)

    def combine(self, images: Tensor, texts: Any, pairing: str = "paired") -> Tensor:
        scores = 1 - images[:, 0]
        return scores if pairing == "paired" else scores[:, None].expand(-1, len(texts))

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return 1 - self.encode_images(pixels)[:, 0]


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> DarkTaste:
    return DarkTaste()
