"""What a fit trains: a head on a reward's features, or the reward's own network. And what both learn on: a survey.

A head computes ``scale * base + f(features)``: the base's own score, and a linear map or one hidden layer over the
image vector, the prompt's vector and their product (the last two where prompt and image have vectors of one width).
Base and features are brought to mean 0 and deviation 1 over what is learned from. A fit starts as the base reward
alone, at the temperature that suits the comparisons best.
May import: types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL.Image import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from visfeedback.plugins import InputError
from visfeedback.rewards import by_size, pick
from visfeedback.rewards._clip import Towers
from visfeedback.rewards._fit_data import Items, Table
from visfeedback.types.files import write_atomic
from visfeedback.types.protocols import Progress

Opener = Callable[[Path], Image]
CHUNK = 64  # images encoded and stored at a time
PIXELS_KEPT = 512  # preprocessed images in memory while a network is trained: 300 MB at 224 x 224
INPUT_SIDE = re.compile(r"embed|conv1|cls_token|ln_pre|pre_layrnorm|logit_scale")
"""What stands before the first layer of a tower (or, logit_scale, is not part of the score)."""
LAYER = re.compile(r"^(.*?)\.?(?:layers|resblocks|layer|blocks)\.(\d+)\.")


def network_of(reward: Any) -> nn.Module:
    """The network of a reward. Raises InputError for a reward without one."""
    towers = getattr(reward, "towers", None)
    found = towers.modules if isinstance(towers, Towers) else getattr(reward, "network", None)
    if not isinstance(found, nn.Module):
        raise InputError(
            f"{reward.name} has no network of its own to learn with; fit one that has, for example --base shapes_clip, "
            "pickscore, hpsv2, clipscore or imagereward"
        )
    return found


def from_unit(reward: Any, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> what ``reward.encode_images`` reads, with a gradient."""
    towers = getattr(reward, "towers", None)
    if isinstance(towers, Towers):
        return towers.recipe.from_pixels(pixels.to(towers.device).float())
    return reward.from_unit(pixels)


class Survey(NamedTuple):
    """What the base reward makes of all images and items, before anything is learned."""

    features: Tensor  # (images, D) float32; rows of images that could not be read are 0
    scores: Tensor  # (items,) float32
    texts: Tensor | None  # (prompts, D) where they are vectors
    failed: dict[int, str]  # image -> a line that says why


def survey(base: Any, data: Items, opened: Opener, folder: Path, progress: Progress) -> Survey:
    """Encode every image once. Chunks that are whole lie in ``folder`` and are not done again."""
    with torch.no_grad():
        texts = base.encode_texts(data.prompts)
        parts: list[dict[str, Tensor]] = []
        failed: dict[int, str] = {}
        with progress(f"encoding images with {base.name}", len(data.images)) as advance:
            for start in range(0, len(data.images), CHUNK):
                rows = range(start, min(start + CHUNK, len(data.images)))
                part, bad = _chunk(base, data, rows, texts, opened, folder / f"{start:08d}.safetensors")
                parts.append(part)
                failed |= bad
                advance(len(rows))
    vectors = texts.float().cpu() if isinstance(texts, Tensor) and texts.ndim == 2 else None
    return _gathered(data, parts, vectors, failed)


def _chunk(
    base: Any, data: Items, rows: range, texts: Any, opened: Opener, file: Path
) -> tuple[dict[str, Tensor], dict[int, str]]:
    if file.is_file():
        return load_file(file), {}
    pixels, failed = _preprocessed(base, data, rows, opened)
    items = [n for n, (image, _) in enumerate(data.items) if image in pixels]
    found = {"images": torch.tensor(list(pixels)), "items": torch.tensor(items), "features": torch.zeros(0, 0),
             "scores": torch.zeros(0)}  # fmt: skip
    if pixels:
        features = _encoded(base, pixels)
        place = {image: n for n, image in enumerate(pixels)}
        chosen = [data.items[n] for n in items]
        own = pick(texts, [prompt for _, prompt in chosen])
        found["scores"] = base.combine(features[[place[image] for image, _ in chosen]], own).float().cpu()
        found["features"] = pooled(features).cpu().contiguous()
    if not failed:  # a file that cannot be read now may be mended before the next attempt
        write_atomic(file, save(found))
    return found, failed


def _preprocessed(base: Any, data: Items, rows: range, opened: Opener) -> tuple[dict[int, Tensor], dict[int, str]]:
    def attempt(row: int) -> Tensor | str:
        try:
            return base.preprocess(opened(data.images[row]))
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(rows, pool.map(attempt, rows), strict=True))
    good = {row: value for row, value in found.items() if isinstance(value, Tensor)}
    return good, {row: value for row, value in found.items() if isinstance(value, str)}


def _encoded(base: Any, pixels: dict[int, Tensor]) -> Tensor:
    """Features in the order of ``pixels``, which may be of several sizes."""
    order: list[int] = []
    parts: list[Tensor] = []
    for rows, batch in by_size(list(pixels.values())):
        parts.append(base.encode_images(batch))
        order += rows
    return torch.cat(parts)[torch.tensor(order).argsort()]


def pooled(features: Tensor) -> Tensor:
    """Encoded images -> one vector each (N, D), float32: a tower's tokens are represented by the first."""
    if not features.is_floating_point() or features.ndim not in (2, 3):
        raise InputError(f"these image features have the shape {tuple(features.shape)}; a head needs a vector an image")
    return (features[:, 0] if features.ndim == 3 else features).float()


def _gathered(data: Items, parts: Sequence[dict[str, Tensor]], texts: Tensor | None, failed: dict[int, str]) -> Survey:
    width = max(part["features"].shape[1] for part in parts)
    features, scores = torch.zeros(len(data.images), width), torch.zeros(len(data.items))
    for part in parts:
        if len(part["images"]):
            features[part["images"]], scores[part["items"]] = part["features"], part["scores"]
    return Survey(features, scores, texts, failed)


def joined(images: Tensor, texts: Tensor | None) -> Tensor:
    """What a head reads: (B, D) and (B, D) -> (B, 3 D); without texts, or with texts of another width, (B, D)."""
    if texts is None or texts.shape[-1] != images.shape[-1]:
        return images
    return torch.cat([images, texts, images * texts], dim=-1)


class Head(nn.Module):
    """``scale * base + f(features)``, over a temperature. ``f`` is linear, or has one hidden layer of ``hidden``."""

    mean: Tensor
    std: Tensor
    base_mean: Tensor
    base_std: Tensor
    temperature: Tensor

    def __init__(self, width: int, hidden: int, seed: int = 0) -> None:
        super().__init__()
        for name, value in (("mean", torch.zeros(width)), ("std", torch.ones(width)), ("base_mean", torch.zeros(())),
                            ("base_std", torch.ones(())), ("temperature", torch.ones(()))):  # fmt: skip
            self.register_buffer(name, value)
        self.scale = nn.Parameter(torch.ones(()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inner = [nn.Linear(width, hidden), nn.GELU()] if hidden else []
            last = nn.Linear(hidden or width, 1, bias=False)
        nn.init.zeros_(last.weight)  # starts as the base alone
        self.body = nn.Sequential(*inner, last)

    def forward(self, features: Tensor, base: Tensor) -> Tensor:
        """(B, F) and the base's scores (B,) -> (B,)."""
        own = self.body((features - self.mean) / self.std)[..., 0]
        return (self.scale * (base - self.base_mean) / self.base_std + own) / self.temperature

    @torch.no_grad()
    def start(self, features: Tensor, base: Tensor, temperature: float) -> None:
        """Standardise by what is learned from, and begin as ``base / temperature``."""
        for values, mean, std in ((features, self.mean, self.std), (base, self.base_mean, self.base_std)):
            mean.copy_(values.mean(0))
            std.copy_(values.std(0, correction=0).clamp_min(1e-6))
        self.scale.copy_(self.base_std / temperature)


class Learner(Protocol):
    """Something with parameters that scores items."""

    def parameters(self) -> dict[str, nn.Parameter]: ...

    def __call__(self, items: Tensor) -> Tensor:
        """Places in ``Table.items`` (B,) -> scores (B,) before the temperature."""
        ...


class HeadLearner:
    """A head over what the survey found."""

    def __init__(
        self, data: Table, found: Survey, hidden: int, temperature: float, train_items: Tensor, seed: int
    ) -> None:
        self._found = found
        self._places = torch.tensor(data.items)
        features = self._features(train_items)
        self.head = Head(features.shape[1], hidden, seed)
        self.head.start(features, found.scores[train_items], temperature)

    def _features(self, items: Tensor) -> Tensor:
        images, prompts = self._places[items].T
        texts = self._found.texts
        return joined(self._found.features[images], None if texts is None else texts[prompts])

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.head.named_parameters())

    def __call__(self, items: Tensor) -> Tensor:
        return self.head(self._features(items), self._found.scores[items])


class NetworkLearner:
    """The upper part of the base's own network, and a scale."""

    def __init__(self, base: Any, data: Table, opened: Opener, frozen: float, temperature: float) -> None:
        self._base = base
        self._data = data
        self.scale = nn.Parameter(torch.tensor(1 / temperature))
        self.trained = upper_part(network_of(base), frozen)
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        self._pixels = lru_cache(PIXELS_KEPT)(lambda image: base.preprocess(opened(data.images[image])))

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"scale": self.scale, **{f"network.{name}": value for name, value in self.trained.items()}}

    def __call__(self, items: Tensor) -> Tensor:
        """Each different image and prompt of the batch is run once."""
        pairs = [self._data.items[n] for n in items.tolist()]
        images, prompts = (list(dict.fromkeys(values)) for values in zip(*pairs, strict=True))
        features = _encoded(self._base, {image: self._pixels(image) for image in images})
        texts = self._base.encode_texts([self._data.prompts[n] for n in prompts])
        own = pick(texts, [prompts.index(prompt) for _, prompt in pairs])
        return self.scale * self._base.combine(features[[images.index(image) for image, _ in pairs]], own).cpu()


def upper_part(network: nn.Module, frozen: float) -> dict[str, nn.Parameter]:
    """Parameters that are trained: without the first ``frozen`` (0 to 1) of the layers of every tower.

    With ``frozen`` above 0 embeddings stay as they are too; what follows the last layer is always trained.
    """
    found = dict(network.named_parameters())
    layers = {name: (m[1], int(m[2])) for name in found if (m := LAYER.match(name))}
    depth: dict[str, int] = {}
    for tower, number in layers.values():
        depth[tower] = max(depth.get(tower, 0), number + 1)

    def stays(name: str) -> bool:
        if name in layers:
            tower, number = layers[name]
            return number < round(frozen * depth[tower])
        return bool(frozen and INPUT_SIDE.search(name))

    return {name: value for name, value in found.items() if not stays(name)}
