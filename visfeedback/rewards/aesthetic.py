"""LAION's aesthetic predictors: how good a picture looks, whatever it shows. 1 to 10 in their training data.

A small head on the unit vector of OpenAI's CLIP (https://github.com/christophschuhmann/improved-aesthetic-predictor,
https://github.com/LAION-AI/aesthetic-predictor):

| variant | head | CLIP | published file |
|---|---|---|---|
| `v2` (the default) | linear 768-1024-128-64-16-1, no activations | ViT-L/14 | sac+logos+ava1-l14-linearMSE.pth |
| `v2relu` | the same with ReLU between | ViT-L/14 | ava+logos-l14-reluMSE.pth |
| `v1`, `v1_b32`, `v1_b16` | one linear layer | ViT-L/14, B/32, B/16 | sa_0_4_vit_{l_14,b_32,b_16}_linear.pth |

A stack of linear layers is one: `v2` is collapsed to 768-1 in fp64 when it is loaded.

After ``@`` stands one of
- a head file: the CLIP is the folder `clip` beside it, if there is one, else OpenAI's from the hub;
- a folder with the head file under its published name (or alone) and the folder `clip`, or without it as above;
- a folder or hub id that simple-aesthetics-predictor wrote, head and CLIP in one; by default its own on the hub.
The CLIP is any folder that ``clipscore`` takes. Same weights, same ``encoder``: together they see a picture once.

Preprocessing is that of the CLIP's library, so that it is shared; OpenAI's script, which LAION used, treats pictures
that are not RGB as open_clip does (see ``_pixels``). ``from_pixels`` against that path: see ``clipscore``.
May import: types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor, nn

from visfeedback.plugins import InputError, nearest
from visfeedback.rewards import _clip_transformers, _weights
from visfeedback.rewards._clip import HF_CONFIG, HF_STEMS, OPEN_CONFIG, Towers, find, open_towers
from visfeedback.types.records import About, Origin

LARGE, BASE32, BASE16 = (f"openai/clip-vit-{size}" for size in ("large-patch14", "base-patch32", "base-patch16"))
WIDTHS = (1024, 128, 64, 16, 1)
CLIP_FOLDER = "clip"


@dataclass(frozen=True)
class Published:
    """What a variant's weights are called."""

    file: str
    hub: str
    """head and CLIP in one"""
    clip: str
    """CLIP alone"""


VARIANTS = {
    "v2": Published(
        "sac+logos+ava1-l14-linearMSE.pth", "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE", LARGE
    ),
    "v2relu": Published("ava+logos-l14-reluMSE.pth", "shunk031/aesthetics-predictor-v2-ava-logos-l14-reluMSE", LARGE),
    "v1": Published("sa_0_4_vit_l_14_linear.pth", "shunk031/aesthetics-predictor-v1-vit-large-patch14", LARGE),
    "v1_b32": Published("sa_0_4_vit_b_32_linear.pth", "shunk031/aesthetics-predictor-v1-vit-base-patch32", BASE32),
    "v1_b16": Published("sa_0_4_vit_b_16_linear.pth", "shunk031/aesthetics-predictor-v1-vit-base-patch16", BASE16),
}
ABOUT = About(
    measures="how good the picture looks, whatever it shows",
    typical="4 to 7",
    accuracy={"ImageReward test": 57.4, "Pick-a-Pic test": 56.8, "HPDv2 test": 76.8, "HPDv3 test": 59.9},
    accuracy_source="readme of HPSv3, for v2",
    licence="Apache-2.0 (v2 heads), MIT (v1 heads, OpenAI's CLIP)",
    megabytes=1215.9,
    paper="https://laion.ai/blog/laion-aesthetics/",
    hub=VARIANTS["v2"].hub,
    variants=tuple(VARIANTS),
)


class Aesthetic:
    """Reward protocol (and DifferentiableReward): ``head``, (N, D) -> (N, 1) in float32, on unit image vectors."""

    range = (float("-inf"), float("inf"))
    differentiable = True
    reads_prompt = False

    def __init__(self, name: str, towers: Towers, head: nn.Module, origin: Origin) -> None:
        self.name = name
        self.preprocessing = towers.recipe.id
        self.encoder = towers.encoder
        self.origin = origin
        self.towers = towers
        self.head = head.to(towers.device)

    def preprocess(self, image: Image) -> Tensor:
        """A picture of any mode and size -> (3, H, W), as the CLIP's library does it."""
        return self.towers.recipe.preprocess(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Preprocessed (N, 3, H, W) -> unit vectors (N, D)."""
        return self.towers.images(pixels)

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """(P, 0): prompts are counted, not read."""
        return torch.zeros(len(prompts), 0)

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired; (N images, P prompts) for the matrix, each row one value. float32."""
        with torch.autocast(images.device.type, enabled=False):
            scores = self.head(images.to(self.towers.device).float()).squeeze(-1)
        return scores if pairing == "paired" else scores[:, None].expand(-1, len(texts))

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) with a gradient to the pixels; ``clipscore`` says how far from published."""
        features = self.encode_images(self.towers.pixels(pixels))
        return self.combine(features, self.encode_texts(prompts))


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> Aesthetic:
    """A published predictor, or one from ``path`` (see above). The head computes in fp32 whatever ``dtype``.

    Raises InputError for an unknown variant, and for weights that are missing, damaged, or of another variant.
    """
    if variant and variant not in VARIANTS:
        raise InputError(f"aesthetic has no variant {variant!r}{nearest(variant, VARIANTS)}")
    kind = variant or "v2"
    name = f"aesthetic:{variant}" if variant else "aesthetic"
    head_file = _head_file(path, VARIANTS[kind], name)
    if head_file is None:
        return _in_one(kind, path, name, device, dtype)
    clip = head_file.parent / CLIP_FOLDER
    beside = clip.is_dir()
    towers = open_towers(
        str(clip) if beside else "",
        VARIANTS[kind].clip,
        name,
        device,
        dtype,
        images_only=True,
        instead=f"put a copy of that CLIP into {clip}",
    )
    head = _head(kind, _weights.read_state(head_file, name), towers.width, head_file, name)
    digests = [_weights.sha256(head_file, name), towers.origin.checkpoint_sha256]
    model = f"{path} on {clip.name if beside else VARIANTS[kind].clip}"
    origin = towers.origin.model_copy(update={"model": model, "checkpoint_sha256": _weights.joint_sha256(digests)})
    return Aesthetic(name, towers, head, origin)


def _head_file(path: str, published: Published, what: str) -> Path | None:
    """The file with a head alone, or None for what holds a CLIP too: a folder with its configuration, or a hub id."""
    place = Path(path).expanduser()
    if not path or not place.exists() or (place / HF_CONFIG).is_file():
        return None
    if place.is_file():
        return place
    if (place / published.file).is_file():
        return place / published.file
    if (place / OPEN_CONFIG).is_file():
        raise InputError(f"{what}: {place} is a CLIP without a head; write --reward {what}@FOLDER with both")
    heads = sorted(file for file in place.iterdir() if file.suffix in _weights.SUFFIXES)
    if len(heads) != 1:
        found = f"{len(heads)} files of weights" if heads else "no weights"
        raise InputError(f"{what}: {found} in {place}; expected {published.file} and a folder {CLIP_FOLDER}")
    return heads[0]


def _in_one(kind: str, path: str, name: str, device: str, dtype: str) -> Aesthetic:
    """Head and CLIP from one folder, as simple-aesthetics-predictor saves them."""
    place, library = find(path, VARIANTS[kind].hub, name)
    if library != "transformers":
        raise InputError(f"{name}: no head in {place}; write --reward {name}@HEAD.pth, with the CLIP in a folder clip")
    prefix = "predictor." if kind.startswith("v1") else "layers."
    towers = _clip_transformers.load(
        place, path or VARIANTS[kind].hub, name, device, dtype, images_only=True, ignore=(f"{prefix}*",)
    )
    state = _weights.read_state(place, name, HF_STEMS)
    own = {key: value for key, value in state.items() if key.startswith(prefix)}
    head = _head(kind, own, towers.width, place, name)
    return Aesthetic(name, towers, head, towers.origin)


def _head(kind: str, state: Mapping[str, Tensor], width: int, file: Path, what: str) -> nn.Module:
    """The head of a variant for vectors of ``width``, filled and frozen; a linear stack as one layer."""
    layers = nn.Linear(width, 1) if kind.startswith("v1") else _stack(width, nn.ReLU if kind == "v2relu" else None)
    names = {key.removeprefix("predictor.").removeprefix("layers."): value for key, value in state.items()}
    _weights.fill(layers, names, file, what)
    layers = layers.eval().requires_grad_(False)
    return collapse(layers) if kind == "v2" and isinstance(layers, nn.Sequential) else layers


def _stack(width: int, activation: type[nn.Module] | None) -> nn.Sequential:
    """The published layers at their published places: the first three have a dropout after them, off when scoring."""
    layers: list[nn.Module] = []
    for i, (inside, outside) in enumerate(zip((width, *WIDTHS), WIDTHS, strict=False)):
        layers.append(nn.Linear(inside, outside))
        if activation and outside > 1:
            layers.append(activation())
        if i < 3:
            layers.append(nn.Dropout((0.2, 0.2, 0.1)[i]))
    return nn.Sequential(*layers)


def collapse(layers: nn.Sequential) -> nn.Linear:
    """One linear layer that equals a stack of them (dropouts off), multiplied out in fp64."""
    first, *rest = (layer for layer in layers if isinstance(layer, nn.Linear))
    weight, bias = first.weight.double(), first.bias.double()
    for layer in rest:
        weight, bias = layer.weight.double() @ weight, layer.weight.double() @ bias + layer.bias.double()
    one = nn.Linear(weight.shape[1], weight.shape[0])
    one.weight.data, one.bias.data = weight.float(), bias.float()
    return one.requires_grad_(False)
