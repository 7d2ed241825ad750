"""The CLIP of the shapes world: cosine similarity of image and prompt, in [-1, 1].

A true open_clip model (two towers) that ships in ``shapes/models/clip``; any folder with the same three kinds of file
(``open_clip_config.json``, ``open_clip_model.safetensors``, tokenizer) serves as ``path``.
Differentiable: ``from_pixels`` resizes with torch's antialiased bicubic instead of Pillow's, which at the model's own
size (64 px images of this world) is no resize at all, so that both agree to rounding. May import: types, shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from visfeedback import shapes
from visfeedback.plugins import InputError
from visfeedback.types.files import file_sha256
from visfeedback.types.records import About, Origin

ABOUT = About(
    measures="cosine of picture and prompt in the CLIP of the shapes world",
    typical="-0.2 to 0.9",
    licence="Apache-2.0",
)
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


class ShapesClip:
    """Reward protocol (and DifferentiableReward) around an open_clip model."""

    name = "shapes_clip"
    range = (-1.0, 1.0)
    differentiable = True
    reads_prompt = True

    def __init__(self, model: Any, preprocess: Any, tokenizer: Any, origin: Origin, device: str = "cpu") -> None:
        self.origin = origin
        self.encoder = f"open_clip-{origin.checkpoint_sha256[:16]}"
        self._model = model.to(device).eval().requires_grad_(False)
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self._device = device
        settings = model.visual.preprocess_cfg
        size = settings["size"]
        self._size = (size, size) if isinstance(size, int) else tuple(size)
        self._mean = torch.tensor(settings["mean"], device=device).view(3, 1, 1)
        self._std = torch.tensor(settings["std"], device=device).view(3, 1, 1)

    @property
    def preprocessing(self) -> str:
        """Size and normalisation, part of cache keys."""
        mean, std = (",".join(f"{v:.4f}" for v in values.flatten().tolist()) for values in (self._mean, self._std))
        return f"open_clip-{self._size[0]}x{self._size[1]}-mean{mean}-std{std}"

    def preprocess(self, image: Image.Image) -> Tensor:
        """open_clip's own transform -> (3, H, W), normalised."""
        return self._preprocess(image.convert("RGB"))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Preprocessed (N, 3, H, W) -> unit vectors (N, D)."""
        return self._model.encode_image(pixels.to(self._device), normalize=True)

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (P, D)."""
        return self._model.encode_text(self._tokenizer(list(prompts)).to(self._device), normalize=True)

    def combine(self, images: Tensor, texts: Tensor, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """Cosines: (B,) when paired, (N images, P prompts) for the matrix."""
        return (images * texts).sum(-1) if pairing == "paired" else images @ texts.T

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) with a gradient to the pixels."""
        return self.combine(self.encode_images(self.from_unit(pixels)), self.encode_texts(prompts))

    def from_unit(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> what ``encode_images`` reads, with a gradient."""
        pixels = pixels.to(self._device)
        if pixels.shape[-2:] != self._size:
            pixels = F.interpolate(pixels, self._size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return (pixels - self._mean) / self._std

    @property
    def network(self) -> Any:
        """The two towers, for whoever trains them."""
        return self._model


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> ShapesClip:
    """The CLIP that ships with the package, or the open_clip folder ``path``; always computed in fp32.

    Raises InputError for a variant, and for a folder whose files are missing or do not fit each other.
    """
    if variant:
        raise InputError(f"shapes_clip has no variant {variant!r}; write --reward shapes_clip or shapes_clip@FOLDER")
    folder = Path(path).expanduser() if path else shapes.model_folder("clip")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"no {name} in {folder}; expected a folder that open_clip wrote")
    model, transform = _open(folder)
    origin = Origin(model=path or "shapes:clip", checkpoint_sha256=file_sha256(folder / WEIGHTS))
    return ShapesClip(model, transform, _tokenizer(folder), origin, device)


def _open(folder: Path) -> tuple[Any, Any]:
    """Model and its evaluation transform, in float32. Weights that do not fit are an error, not a random model."""
    import open_clip
    from safetensors import SafetensorError, safe_open

    logging.getLogger("open_clip").setLevel(logging.ERROR)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            stored = set(file.keys())
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", precision="fp32")
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{folder} is no open_clip model that can be loaded: {str(error).splitlines()[0]}") from None
    state = model.state_dict()
    missing = sorted(set(state) - stored)
    if missing:
        raise InputError(f"{folder / WEIGHTS} lacks {len(missing)} weights, the first is {missing[0]}")
    broken = next((name for name, value in state.items() if name in stored and not value.isfinite().all()), None)
    if broken is not None:
        raise InputError(f"the weight {broken} in {folder / WEIGHTS} is NaN or infinite; fetch the file again")
    return model, transform


def _tokenizer(folder: Path) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(f"local-dir:{folder}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} has no tokenizer that can be loaded: {str(error).splitlines()[0]}") from None
