"""Rewards that were fitted: a head over another reward's features, or another reward with trained weights.

May import: types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from visfeedback.rewards._fit_label_head import LabelHead
from visfeedback.rewards._fit_models import Head, from_unit, joined, pooled
from visfeedback.types.records import Origin

FLOATS = 16_000_000
"""Most numbers that a head's inputs take at once when every image meets every prompt: 64 MB."""
Texts = Any
"""What the base makes of prompts."""


class FittedHead:
    """Reward protocol (and DifferentiableReward where the base is one). Features are the base's own and shared."""

    def __init__(
        self, base: Any, head: Head | LabelHead, origin: Origin, name: str = "fit",
        range: tuple[float, float] = (-float("inf"), float("inf")),
    ) -> None:  # fmt: skip
        self.name = name
        self.range = range
        self.base = base
        self.origin = origin
        self.differentiable: bool = base.differentiable
        self.reads_prompt: bool = base.reads_prompt
        self.preprocessing: str = base.preprocessing
        self.encoder: str = base.encoder
        self._head = head.float().eval().requires_grad_(False)

    def preprocess(self, image: Image) -> Tensor:
        """As the base."""
        return self.base.preprocess(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """As the base."""
        return self.base.encode_images(pixels)

    def encode_texts(self, prompts: Sequence[str]) -> Texts:
        """As the base."""
        return self.base.encode_texts(prompts)

    def combine(self, images: Tensor, texts: Texts, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix; float32."""
        scores = self.base.combine(images, texts, pairing).float()
        head, vectors = self._head.to(scores.device), pooled(images).to(scores.device)
        words = texts.float().to(scores.device) if isinstance(texts, Tensor) and texts.ndim == 2 else None
        if pairing == "paired":
            return head(joined(vectors, words), scores)
        if words is None or not len(words):
            return head(joined(vectors, None)[:, None], scores) if len(texts) else scores
        step = max(1, FLOATS // (3 * vectors.shape[1] * len(words)))
        parts = [
            head(joined(part[:, None].expand(-1, len(words), -1), words.expand(len(part), -1, -1)), own)
            for part, own in zip(vectors.split(step), scores.split(step), strict=True)
        ]
        return torch.cat(parts)

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) with a gradient; as far from the exact preprocessing as the base's."""
        return self.combine(self.encode_images(from_unit(self.base, pixels)), self.encode_texts(prompts))


class FittedNetwork:
    """Reward protocol (and DifferentiableReward): ``scale`` times a base whose network was trained further."""

    range = (-float("inf"), float("inf"))

    def __init__(self, base: Any, scale: float, encoder: str, origin: Origin, name: str = "fit") -> None:
        self.name = name
        self.base = base
        self.origin = origin
        self.encoder = encoder
        self.differentiable: bool = base.differentiable
        self.reads_prompt: bool = base.reads_prompt
        self.preprocessing: str = base.preprocessing
        self._scale = scale

    def preprocess(self, image: Image) -> Tensor:
        """As the base."""
        return self.base.preprocess(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """By the trained network."""
        return self.base.encode_images(pixels)

    def encode_texts(self, prompts: Sequence[str]) -> Texts:
        """By the trained network."""
        return self.base.encode_texts(prompts)

    def combine(self, images: Tensor, texts: Texts, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix; float32."""
        return self._scale * self.base.combine(images, texts, pairing).float()

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) with a gradient; as far from the exact preprocessing as the base's."""
        return self._scale * self.base.from_pixels(pixels, prompts).float()
