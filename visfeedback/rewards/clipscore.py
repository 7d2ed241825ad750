"""CLIPScore: how well a picture fits a prompt, by the cosine in any CLIP model. Hessel et al. 2021, arXiv:2104.08718.

Variants are scales, which papers mix up:

| reward | value | weights when no path is given |
|---|---|---|
| `clipscore`, `clipscore:x100` | 100 cos, as torchmetrics | openai/clip-vit-large-patch14 |
| `clipscore:cosine` | cos | openai/clip-vit-large-patch14 |
| `clipscore:hessel` | 2.5 max(cos, 0), as the paper | openai/clip-vit-base-patch32 |

`hessel` puts "A photo depicts " before the prompt.

Weights: after ``@`` a hub id or folder that transformers or open_clip wrote, or a checkpoint file in such a folder.
Negative cosines stay negative except in `hessel` (torchmetrics cuts its mean at 0); trained models give none.
Prompts longer than the context lose words before the end token, not the end token itself (as in torchmetrics 1.9).

``from_pixels`` against the published path: at the model's own size equal to rounding. Resized from 512 to 1024 px
(12 soft pictures), pixels differ by 0.28 of 255 on average and 1.1 at most, cosines of a random ViT-B/32 by 4e-5 on
average and 1e-4 at most. On white noise single pixels differ by up to 21: Pillow cuts overshoot between its two passes.
May import: types.
"""

from __future__ import annotations

from dataclasses import dataclass

from visfeedback.plugins import InputError, nearest
from visfeedback.rewards._clip import CosineReward, open_towers
from visfeedback.types.records import About

LARGE, BASE = "openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Scale:
    """What is made of a cosine, and the weights it is made with."""

    hub: str
    factor: float
    floor: bool = False
    prefix: str = ""


SCALES = {
    "x100": Scale(LARGE, 100.0),
    "cosine": Scale(LARGE, 1.0),
    "hessel": Scale(BASE, 2.5, floor=True, prefix="A photo depicts "),
}
ABOUT = About(
    measures="how well the picture fits the prompt",
    typical="15 to 35",
    accuracy={"ImageReward test": 57.1, "Pick-a-Pic test": 60.8, "HPDv2 test": 65.1, "HPDv3 test": 48.6, "MMRB2": 51.0},
    accuracy_source="readmes of HPSv3 and MMRB2, for CLIP ViT-H/14",
    licence="MIT (OpenAI's weights)",
    megabytes=1710.5,
    paper="https://arxiv.org/abs/2104.08718",
    hub=LARGE,
    variants=tuple(SCALES),
)
RANGE = "-100 to 100; cosine -1 to 1; hessel 0 to 2.5"


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> CosineReward:
    """One of the scales over OpenAI's weights, or over the CLIP model at ``path``.

    Raises InputError for an unknown variant, and for files that are no CLIP model.
    """
    if variant and variant not in SCALES:
        raise InputError(f"clipscore has no variant {variant!r}{nearest(variant, SCALES)}")
    scale = SCALES[variant or "x100"]
    name = f"clipscore:{variant}" if variant else "clipscore"
    towers = open_towers(path, scale.hub, name, device, dtype)
    return CosineReward(name, towers, scale.factor, scale.floor, scale.prefix)
