"""Size of an image as a JPEG file of quality 95, in kilobytes (1,000 bytes): minus it, or plus it.

The reward of DDPO (Black et al. 2023, arXiv 2305.13301): ``jpeg`` prefers images that compress well (score -kB),
``incompressible`` the opposite (+kB). Flow-GRPO divides by 500; scale it where rewards are mixed. The encoder is
Pillow's with its defaults besides quality: 4:2:0 colour, baseline, standard Huffman tables. Its library's version is
part of ``encoder``, because another one may give other sizes. No gradient. May import: types.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Literal

import torch
from PIL import Image, features
from torch import Tensor

from visfeedback.plugins import InputError, nearest
from visfeedback.rewards._rgb import spread
from visfeedback.types.records import About, Origin

QUALITY = 95
SIGNS = {"jpeg": -1.0, "incompressible": 1.0}
MAX_SIDE = 65_500  # pixels: what libjpeg accepts

ABOUT = About(
    measures="size of the image as a JPEG of quality 95: small is good (jpeg) or large is good (incompressible)",
    typical="-250 to -20 kB for 512x512 pixels",
    licence="Apache-2.0",
    paper="arXiv 2305.13301",
    variants=tuple(SIGNS),
)
RANGE = "any to 0; incompressible 0 to any"


class Compressibility:
    """Reward protocol around Pillow's JPEG encoder."""

    differentiable = False
    reads_prompt = False
    preprocessing = f"jpeg{QUALITY}-kilobytes"
    encoder = f"pillow-jpeg-{features.version('libjpeg_turbo') or features.version('jpg')}"

    def __init__(self, variant: str = "jpeg", name: str = "") -> None:
        self.name = name or f"compressibility:{variant}"
        self.range = (-float("inf"), 0.0) if SIGNS[variant] < 0 else (0.0, float("inf"))
        self.origin = Origin(model="program", revision=self.encoder)
        self._sign = SIGNS[variant]

    def preprocess(self, image: Image.Image) -> Tensor:
        """(1, 1, 1) float64: kilobytes of the RGB pixels as a JPEG, measured here because the picture is here.

        Raises InputError for an image that no JPEG can hold (a side above 65,500 pixels).
        """
        if max(image.size) > MAX_SIDE:
            raise InputError(f"a side of {max(image.size)} pixels; JPEG holds at most {MAX_SIDE}")
        rgb, buffer = image.convert("RGB"), BytesIO()
        rgb.info = {}  # a comment of the file that was read would be written, and counted
        rgb.save(buffer, "JPEG", quality=QUALITY)
        return torch.full((1, 1, 1), buffer.tell() / 1000, dtype=torch.float64)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 1, 1, 1) -> (N, 1) kilobytes."""
        return pixels.reshape(len(pixels), 1)

    def encode_texts(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix; the prompt makes no difference."""
        return spread(self._sign * images[:, 0].float(), texts, pairing)


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> Compressibility:
    """``compressibility`` or ``compressibility:jpeg``, ``compressibility:incompressible``.

    ``device`` and ``dtype`` are accepted and ignored: a program runs on the CPU. Raises InputError for another variant
    or a path.
    """
    if path:
        raise InputError(
            "compressibility has no weights; write --reward compressibility or compressibility:incompressible"
        )
    if variant and variant not in SIGNS:
        raise InputError(f"compressibility has no variant {variant!r}{nearest(variant, SIGNS)}")
    return Compressibility(variant or "jpeg", f"compressibility:{variant}" if variant else "compressibility")
