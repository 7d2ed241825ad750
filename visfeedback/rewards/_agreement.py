"""How much the parts of a mix agree about a picture, as a reward of its own: ``mix:agreement@FILE.toml``.

May import: types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from torch import Tensor

from visfeedback.rewards._answered import Failures

if TYPE_CHECKING:
    from visfeedback.rewards.mix import Mix


class Agreement:
    """Reward protocol (and DifferentiableReward as the mix is one): minus the disagreement of a mix's parts."""

    name = "mix:agreement"

    def __init__(self, mix: Mix) -> None:
        self.mix = mix
        self.differentiable, self.reads_prompt = mix.differentiable, mix.reads_prompt
        self.preprocessing, self.encoder, self.origin = mix.preprocessing, mix.encoder, mix.origin
        self.pairs_at_once = mix.pairs_at_once

    @property
    def range(self) -> tuple[float, float]:
        """0 when all agree; at worst as far apart as the parts' ranges allow."""
        return -self.mix.recipe.disagreement([reward.range for reward in self.mix.rewards]), 0.0

    @property
    def failures(self) -> Failures:
        """Of the mix."""
        return self.mix.failures

    def preprocess(self, image: Image.Image) -> Tensor:
        """As the mix."""
        return self.mix.preprocess(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """As the mix."""
        return self.mix.encode_images(pixels)

    def encode_texts(self, prompts: Sequence[str]) -> list[Any]:
        """As the mix."""
        return self.mix.encode_texts(prompts)

    def combine(self, images: Tensor, texts: list[Any], pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix."""
        return -self.mix.uncertainty(images, texts, pairing)

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) with a gradient."""
        return -self.mix.disagreement(self.mix.parts_from_pixels(pixels, prompts))
