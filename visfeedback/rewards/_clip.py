"""CLIP models for rewards: two towers of unit vectors, whichever library they were published with.

``open_towers`` takes a folder or hub id that transformers wrote (``config.json`` of type clip) or that open_clip wrote
(``open_clip_config.json``), or a checkpoint file whose folder holds one of these; where both are present transformers
is used. ``CosineReward`` is the reward that a cosine makes: CLIPScore, PickScore and HPSv2 differ in their weights,
preprocessing and scale.
The towers compute in the dtype asked for, their vectors are normalised in fp32 and compared in fp64, whatever autocast
or TF32 say. Paper: Radford et al. 2021, arXiv:2103.00020. May import: types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from visfeedback.plugins import InputError
from visfeedback.rewards import _weights
from visfeedback.types.records import Origin

HF_CONFIG, OPEN_CONFIG = "config.json", "open_clip_config.json"
HF_STEMS = ("model", "pytorch_model")
OPEN_STEMS = ("open_clip_model", "open_clip_pytorch_model")
TEXTS_AT_ONCE = 256
"""Prompts of one forward: sorted by length before, so that short ones are not padded to the longest of all."""

Library = Literal["transformers", "open_clip"]
Dtype = Literal["fp32", "bf16", "fp16"]


class ImageRecipe(Protocol):
    """A preprocessing, for pictures and for pixels that need a gradient."""

    @property
    def id(self) -> str: ...

    def preprocess(self, image: Image) -> Tensor: ...

    def from_pixels(self, pixels: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Towers:
    """An image tower and a text tower, with what goes in front of them."""

    recipe: ImageRecipe
    encoder: str
    """names the weights of the image tower and what is done with them"""
    origin: Origin
    device: torch.device
    dtype: torch.dtype
    width: int
    """dimensions of the vectors"""
    modules: nn.Module
    see: Callable[[Tensor], Tensor]
    """preprocessed images (N, 3, H, W) -> (N, D)"""
    read: Callable[[Tensor], Tensor]
    """token ids (P, L) -> (P, D); L may be cut after the longest end"""
    tokenize: Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    """prompts -> ids (P, L) and how many of each row count (P,)"""
    scale: float
    """exp of the logit scale"""

    def pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> what ``images`` takes, with a gradient."""
        with torch.autocast(self.device.type, enabled=False):
            return self.recipe.from_pixels(pixels.to(self.device).float())

    def images(self, pixels: Tensor) -> Tensor:
        """Preprocessed images (N, 3, H, W) -> unit vectors (N, D), float32."""
        with torch.autocast(self.device.type, enabled=False):
            return F.normalize(self.see(pixels.to(self.device, self.dtype)).float(), dim=-1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (P, D), float32. Padding after a prompt's end is cut where the text tower is causal."""
        vectors = torch.empty(len(prompts), self.width, device=self.device)
        if not prompts:
            return vectors
        ids, lengths = self.tokenize(prompts)
        for rows in lengths.argsort(stable=True).split(TEXTS_AT_ONCE):
            trimmed = ids[rows, : int(lengths[rows].max())].to(self.device)
            with torch.autocast(self.device.type, enabled=False):
                vectors[rows.to(self.device)] = F.normalize(self.read(trimmed).float(), dim=-1)
        return vectors


class CosineReward:
    """Reward protocol (and DifferentiableReward): ``factor`` times the cosine of picture and prompt.

    ``floor`` cuts negative cosines to 0; ``prefix`` stands before every prompt.
    """

    differentiable = True
    reads_prompt = True

    def __init__(self, name: str, towers: Towers, factor: float = 1.0, floor: bool = False, prefix: str = "") -> None:
        self.name = name
        self.range = (0.0 if floor else -factor, factor)
        self.preprocessing = towers.recipe.id
        self.encoder = towers.encoder
        self.origin = towers.origin
        self.towers = towers
        self.factor = factor
        self.floor = floor
        self.prefix = prefix

    def preprocess(self, image: Image) -> Tensor:
        """A picture of any mode and size -> (3, H, W), as published for this model."""
        return self.towers.recipe.preprocess(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Preprocessed (N, 3, H, W) -> unit vectors (N, D)."""
        return self.towers.images(pixels)

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (P, D). What is longer than the model's context is cut; the end token stays."""
        return self.towers.texts([self.prefix + prompt for prompt in prompts])

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired; (N images, P prompts) for the matrix. float32."""
        cosines = cosine(images, texts, pairing)
        return self.factor * (cosines.clamp(min=0) if self.floor else cosines)

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) with a gradient to the pixels.

        Equal to the published path where nothing is resized; else what resizing in floats instead of Pillow's 8 bits
        makes, which each reward's file states.
        """
        features = self.encode_images(self.towers.pixels(pixels))
        return self.combine(features, self.encode_texts(prompts))


def cosine(images: Tensor, texts: Tensor, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
    """Products of unit vectors (N, D) and (P, D), float32: row by row, or all with all.

    In fp64, where the device has it, so that both pairings agree and neither autocast nor TF32 rounds them.
    """
    wide = torch.float32 if images.device.type == "mps" else torch.float64
    left, right = images.to(wide), texts.to(images.device, wide)
    return ((left * right).sum(-1) if pairing == "paired" else left @ right.T).float()


def open_towers(
    path: str, hub: str, what: str, device: str, dtype: str, images_only: bool = False, instead: str = ""
) -> Towers:
    """The CLIP model that the user named after ``@``, or ``hub``, on ``device`` in ``dtype``, frozen.

    ``images_only`` leaves the text tower out; ``texts`` must then not be called. ``instead`` as in
    ``_weights.resolve``.
    Raises InputError for files that are missing, damaged, or of another model.
    """
    place, library = find(path, hub, what, instead)
    if library == "transformers":
        from visfeedback.rewards._clip_transformers import load
    else:
        from visfeedback.rewards._clip_open import load
    return load(place, path or hub, what, device, dtype, images_only)


def find(path: str, hub: str, what: str, instead: str = "") -> tuple[Path, Library]:
    """Folder or checkpoint file on this machine, weights included, and whose it is. Downloads only one library's."""
    place = _weights.resolve(path, hub, "", what, _weights.SMALL_FILES, instead)
    library = library_of(place, what)
    if path and Path(path).expanduser().exists():
        return place, library
    stems = HF_STEMS if library == "transformers" else OPEN_STEMS
    for suffixes in (
        (".safetensors", ".safetensors.index.json", "-*.safetensors"),
        (".bin", ".bin.index.json", "-*.bin"),
    ):
        files = [stem + suffix for stem in stems for suffix in suffixes]
        place = _weights.resolve(path, hub, "", what, (*_weights.SMALL_FILES, *files), instead)
        if any(place.glob(f"*{suffixes[0]}")):
            break
    return place, library


def library_of(place: Path, what: str) -> Library:
    """Which library wrote a folder, or the folder of a file. Raises InputError when neither did."""
    folder = place if place.is_dir() else place.parent
    if (folder / HF_CONFIG).is_file():
        kind = _weights.read_json(folder / HF_CONFIG, what).get("model_type")
        if kind in ("clip", "clip_vision_model"):
            return "transformers"
        if not (folder / OPEN_CONFIG).is_file():
            raise InputError(f"{what}: {folder / HF_CONFIG} is of a {kind!r} model; expected one of type 'clip'")
    if (folder / OPEN_CONFIG).is_file():
        return "open_clip"
    raise InputError(
        f"{what}: no {HF_CONFIG} or {OPEN_CONFIG} in {folder}; expected a CLIP folder of transformers or open_clip"
    )


def no_text(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Stands for the tokenizer of towers that were opened with ``images_only``."""
    raise RuntimeError("these towers were opened without their text tower")


def origin_of(place: Path, model: str, digest: str, dtype: str) -> Origin:
    """``Origin`` of weights at ``place`` that the user calls ``model``."""
    return Origin.model_validate(
        {"model": model, "revision": _weights.revision(place), "checkpoint_sha256": digest, "dtype": dtype}
    )
