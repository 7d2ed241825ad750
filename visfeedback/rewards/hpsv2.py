"""HPSv2 and HPSv2.1: human preference for a picture of a prompt. Wu et al. 2023, arXiv:2306.09341.

Score = cosine in a CLIP ViT-H/14 (open_clip's, GELU) trained on HPD v2, without the logit scale: what ``hpsv2.score``
returns, 0.2 to 0.35. Their benchmark tables show it times 100.

Variants: `2.0` (the default, as in ``hpsv2.score``, whose name this reward has) and `2.1` (more accurate; what
``hpsv2.evaluate`` uses). Their scales differ: never compare one's scores with the other's, nor those of two prompts.

Weights: `HPS_v2_compressed.pt` / `HPS_v2.1_compressed.pt` of the hub repository `xswu/HPSv2`, or after ``@`` such a
file, a folder with it, or another open_clip folder (``open_clip_config.json``), whose image size then counts.

Preprocessing, its own: RGB -> floats -> the *longest* side to 224 (bicubic on the tensor) -> bars of 0 around the
middle -> CLIP's mean and std. Nothing is cropped. Two kinds of picture break the package and are scored here: one whose
longest side is 224 already but which is not square (it gets no bars there; here it does), and one in RGBA (its alpha
goes into the image tower as a fourth channel there; here it is dropped, as that code does for other modes).
Resizing is antialiased, as torchvision does since 0.17; with older ones the package's scores were others.

``from_pixels`` does the very same (difference 0 for 8-bit pictures as floats). May import: types.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from visfeedback.plugins import InputError, nearest
from visfeedback.rewards import _clip_open, _weights
from visfeedback.rewards._clip import OPEN_CONFIG, CosineReward, Towers
from visfeedback.rewards._pixels import OPENAI_MEAN, OPENAI_STD, crop_or_pad, normalise
from visfeedback.types.records import About

HUB, ARCHITECTURE = "xswu/HPSv2", "ViT-H-14"
FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
ABOUT = About(
    measures="which picture people would prefer for the prompt",
    typical="0.2 to 0.35; only differences within one prompt mean something",
    accuracy={"ImageReward test": 65.7, "Pick-a-Pic test": 63.8, "HPDv2 test": 83.3, "HPDv3 test": 65.3, "MMRB2": 54.7},
    accuracy_source="readmes of HPSv2, HPSv3 and MMRB2; of 2.1: 66.8 on ImageReward test, 84.1 on HPDv2 test",
    licence="Apache-2.0",
    megabytes=3944.4,
    paper="https://arxiv.org/abs/2306.09341",
    hub=HUB,
    variants=tuple(FILES),
)
RANGE = (-1.0, 1.0)


@dataclass(frozen=True)
class Letterbox:
    """The whole picture in a square of ``size`` pixels, with bars where it is not square itself."""

    size: int
    """pixels"""
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD

    @property
    def id(self) -> str:
        mean, std = (",".join(f"{value:.5g}" for value in values) for values in (self.mean, self.std))
        return f"hpsv2-letterbox-{self.size}-bicubic-antialias-mean{mean}-std{std}"

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture of any mode and size -> (3, size, size), normalised."""
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        return self.from_pixels((pixels.contiguous().float() / 255)[None])[0]

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, size, size), normalised, with a gradient. Overshoot is not cut, as there."""
        sides = pixels.shape[-2:]
        scale = self.size / max(sides)
        if scale != 1:
            height, width = (max(round(side * scale), 1) for side in sides)
            pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
        return normalise(crop_or_pad(pixels, (self.size, self.size)), self.mean, self.std)


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> CosineReward:
    """Version 2.0 or 2.1, from the hub or from ``path``.

    Raises InputError for another variant, and for files that are no such model.
    """
    if variant and variant not in FILES:
        raise InputError(f"hpsv2 has no variant {variant!r}{nearest(variant, FILES)}")
    name = f"hpsv2:{variant}" if variant else "hpsv2"
    return CosineReward(name, _towers(path, FILES[variant or "2.0"], name, device, dtype))


def _towers(path: str, file: str, what: str, device: str, dtype: str) -> Towers:
    """ViT-H/14 for a bare checkpoint; the architecture of ``open_clip_config.json`` where one lies beside it."""
    import open_clip

    local = Path(path).expanduser()
    folder = local if local.is_dir() else local.parent
    if path and local.exists() and (folder / OPEN_CONFIG).is_file():
        place = local / file if (local / file).is_file() else local
        return _clip_open.load(place, path, what, device, dtype, recipe=_letterbox)
    config = open_clip.get_model_config(ARCHITECTURE)
    assert config is not None  # open_clip has had it since before HPSv2
    place = _weights.resolve(path, HUB, file, what)
    tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
    return _clip_open.build(config, place, path or HUB, what, device, dtype, _letterbox, tokenizer)


def _letterbox(size: int | tuple[int, int]) -> Letterbox:
    return Letterbox(size if isinstance(size, int) else max(size))
