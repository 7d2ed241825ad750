"""Images as they are: RGB bytes for rewards whose model does its own preprocessing, or that read an image as a file.

May import: nothing of the package.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PREPROCESSING = "rgb-uint8"
"""Identity of ``rgb_bytes``: rewards that name it share decoded images."""


def rgb_bytes(image: Image.Image) -> Tensor:
    """Any mode -> (3, H, W) uint8, by Pillow's ``convert("RGB")``: alpha is dropped, 16-bit values are cut at 255."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def pictures(pixels: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) uint8 -> N RGB images."""
    return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def spread(scores: Tensor, texts: Sequence[object], pairing: str) -> Tensor:
    """(N,) scores that do not depend on the prompt -> (N,) when paired, (N, P) for the matrix."""
    return scores if pairing == "paired" else scores[:, None].expand(-1, len(texts)).contiguous()
