"""PickScore: which of two pictures people would pick for a prompt. Kirstain et al. 2023, arXiv:2305.01569.

Score = exp(logit scale) x cosine in a CLIP ViT-H/14 trained on Pick-a-Pic choices; the published model's scale is about
100. Trained by cross-entropy over two pictures, so a softmax over one prompt's pictures gives the shares of choices.

Weights: hub id or folder that transformers wrote (after ``@``), by default `yuvalkirstain/PickScore_v1`. Preprocessing
and vocabulary of the published processor (laion/CLIP-ViT-H-14-laion2B-s32B-b79K: shortest edge 224, bicubic, centre
crop; 77 tokens) are CLIP's own, so that repository is not needed; a folder's own files come first.
transformers 5 resizes by torchvision unless told otherwise (up to 0.015 apart, normalised); here it is Pillow.

``from_pixels`` against that path: see ``clipscore``, whose recipe is the same. May import: types.
"""

from __future__ import annotations

from visfeedback.plugins import InputError
from visfeedback.rewards._clip import CosineReward, open_towers
from visfeedback.types.records import About

HUB = "yuvalkirstain/PickScore_v1"
ABOUT = About(
    measures="which picture people would pick for the prompt",
    typical="18 to 24; only differences within one prompt mean something",
    accuracy={"ImageReward test": 61.6, "Pick-a-Pic test": 70.5, "HPDv2 test": 79.8, "HPDv3 test": 65.6, "MMRB2": 58.6},
    accuracy_source="readmes of HPSv3 and MMRB2",
    licence="MIT (code)",
    megabytes=3944.4,
    paper="https://arxiv.org/abs/2305.01569",
    hub=HUB,
)
RANGE = "-100 to 100"
"""With the published logit scale."""


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> CosineReward:
    """The published model, or the CLIP folder ``path``. Raises InputError for a variant, and for what is no CLIP."""
    if variant:
        raise InputError(f"pickscore has no variant {variant!r}; write --reward pickscore or pickscore@FOLDER")
    towers = open_towers(path, HUB, "pickscore", device, dtype)
    return CosineReward("pickscore", towers, factor=towers.scale)
