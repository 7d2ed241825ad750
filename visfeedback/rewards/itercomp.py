"""IterComp's three composition rewards: attribute binding, spatial relations, non-spatial relations, and their mean.

Paper: https://arxiv.org/abs/2410.07171. Each has the architecture, preprocessing and constants of ImageReward
(``imagereward.py``) and weights of its own. ``itercomp`` is the mean of the three: the paper's feedback learning weighs
them equally; the mean itself, which keeps the scale of one, is our choice.

``itercomp`` and ``itercomp:spatial`` load the files of ``comin/IterComp`` from the hub's cache or the hub.
``itercomp@FOLDER`` looks in FOLDER and FOLDER/reward_models for one weights file per reward, known by the word
``attribute``, ``spatial`` or ``non_spatial`` (``non-spatial``, ``nonspatial``) in its name; ``itercomp:spatial@FILE``
takes that file. Tokenizer and configs lie beside the weights or in FOLDER, as ``imagereward.py`` says.
May import: types.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from visfeedback.plugins import InputError, nearest
from visfeedback.rewards import _weights
from visfeedback.rewards.imagereward import BlipReward, open_reward
from visfeedback.types.records import About, Origin

ASPECTS = ("attribute", "spatial", "non_spatial")
ABOUT = About(
    measures="composition: attributes, spatial and non-spatial relations of the prompt",
    typical="-2 to 2",
    licence="MIT",
    megabytes=3 * 1787.0,
    paper="https://arxiv.org/abs/2410.07171",
    hub="comin/IterComp",
    variants=("mean", *ASPECTS),
)
HUB_FOLDER = "reward_models"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class MeanReward:
    """Reward protocol (and DifferentiableReward): the mean of several BlipRewards of one size.

    Image towers with equal weights run once. Encoded images are (N, towers, T, D), or (N, T, D) when all are equal and
    features can be shared with ImageReward's.
    """

    range = (-float("inf"), float("inf"))
    differentiable = True
    reads_prompt = True

    def __init__(self, name: str, parts: Sequence[BlipReward], origin: Origin) -> None:
        self.name = name
        self.parts = list(parts)
        self.origin = origin
        self.preprocessing = parts[0].preprocessing
        self.towers = list(dict.fromkeys(part.encoder for part in parts))
        self.encoder = self.towers[0] if len(self.towers) == 1 else f"stack-{'+'.join(self.towers)}"

    def preprocess(self, image: Image.Image) -> Tensor:
        """As ImageReward -> (3, H, W)."""
        return self.parts[0].preprocess(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Preprocessed (N, 3, H, W) -> tokens of each different image tower."""
        chosen = {part.encoder: part for part in self.parts}
        features = [chosen[tower].encode_images(pixels) for tower in self.towers]
        return features[0] if len(features) == 1 else torch.stack(features, dim=1)

    def encode_texts(self, prompts: Sequence[str]) -> list[Tensor]:
        """Token ids (L,) of each prompt; the three share a tokenizer."""
        return self.parts[0].encode_texts(prompts)

    def combine(self, images: Tensor, texts: list[Tensor], pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix; float32."""
        towers = [images] if len(self.towers) == 1 else list(images.unbind(1))
        own = [towers[self.towers.index(part.encoder)] for part in self.parts]
        scores = [part.combine(features, texts, pairing) for part, features in zip(self.parts, own, strict=True)]
        return torch.stack(scores).mean(0)

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) with a gradient; as far from the published score as ``imagereward``'s."""
        return self.combine(self.encode_images(self.from_unit(pixels)), self.encode_texts(prompts))

    def from_unit(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> what ``encode_images`` reads, with a gradient."""
        return self.parts[0].from_unit(pixels)


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> BlipReward | MeanReward:
    """One of the three, or their mean, from the hub, or from a local file or folder (see the module's docstring).

    Raises InputError for an unknown variant, for files that are missing or damaged, and for weights of another model.
    """
    if variant and variant not in ABOUT.variants:
        raise InputError(f"itercomp has no variant {variant!r}{nearest(variant, ABOUT.variants)}")
    local = Path(path).expanduser()
    if path and local.is_file():
        return _from_file(local, variant, path, device, dtype)
    folder = _weights.resolve(path, ABOUT.hub, "", "itercomp", files=(f"{HUB_FOLDER}/*",))
    model = path or ABOUT.hub
    if variant in ASPECTS:
        return open_reward(f"itercomp:{variant}", find(folder, variant), model, device, dtype, root=folder)
    name = f"itercomp:{variant}" if variant else "itercomp"
    files = [find(folder, aspect) for aspect in ASPECTS]
    parts = [
        open_reward(f"itercomp:{a}", f, model, device, dtype, root=folder) for a, f in zip(ASPECTS, files, strict=True)
    ]
    return MeanReward(name, parts, _origin(parts))


def _from_file(file: Path, variant: str, path: str, device: str, dtype: str) -> BlipReward:
    if variant not in ASPECTS:
        raise InputError(
            f"{file} is one of three; write itercomp:attribute@FILE, itercomp:spatial@FILE, ... or a folder"
        )
    return open_reward(f"itercomp:{variant}", file, path, device, dtype)


def find(folder: Path, aspect: str) -> Path:
    """The one weights file of an aspect, by the word in its name. InputError when there is none or more than one."""
    places = (folder, folder / HUB_FOLDER)
    files = sorted(f for place in places if place.is_dir() for f in place.iterdir() if f.suffix in SUFFIXES)
    found = [file for file in files if aspect_of(file.stem) == aspect]
    if len(found) != 1:
        what = f"{len(found)} files for {aspect}" if found else f"no {aspect} reward"
        raise InputError(
            f"itercomp: {what} in {folder}; expected one weights file with {aspect!r} in its name, "
            f"or write itercomp:{aspect}@FILE"
        )
    return found[0]


def aspect_of(stem: str) -> str:
    """``itercomp_NonSpatial-v1`` -> ``non_spatial``; empty when no aspect is named."""
    plain = "".join(letter for letter in stem.lower() if letter.isalpha())
    names = {"nonspatial": "non_spatial", "spatial": "spatial", "attribute": "attribute"}
    return next((aspect for word, aspect in names.items() if word in plain), "")


def _origin(parts: Sequence[BlipReward]) -> Origin:
    """Of the three files together: the sha256 of their digests, in order."""
    digests = "".join(part.origin.checkpoint_sha256 for part in parts)
    sha256 = hashlib.sha256(digests.encode()).hexdigest()
    return parts[0].origin.model_copy(update={"checkpoint_sha256": sha256})
