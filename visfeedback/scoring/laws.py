"""What every reward must obey, checked on pictures made here: for `visfeedback rewards check` and the contract tests.

No weights are known to be right by these laws; they find batches that mix up their rows, wrong shapes, scores out of
range, image modes that crash, and gradients that are promised and absent. May import: types, rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from visfeedback.rewards import score
from visfeedback.types.protocols import Reward

PROMPTS = ("a red circle", "two blue squares", "a green triangle", "a red circle left of a blue square")
QUOTED = ('a sign that says "red"', 'the word "two" on a wall', 'a poster with "green"', 'the letters "ab"')
"""For rewards that look for text."""
SIZES = ((64, 64), (96, 48), (40, 120), (224, 224))
MODES = ("RGB", "RGBA", "LA", "L", "P", "P transparent", "CMYK", "I;16")
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 5e-3, "": 1e-5}
"""Relative to a score above 1, absolute below."""


@dataclass(frozen=True)
class Law:
    """One law and whether it holds."""

    name: str
    holds: bool
    found: str = ""
    """what was seen, in words"""


def examine(reward: Reward, prompts: Sequence[str] | None = None) -> list[Law]:
    """Every law, with ``prompts`` (4 of them) that this reward can read, else ones of our own."""
    images = [picture(size, seed) for seed, size in enumerate(SIZES)]
    texts = list(prompts or _readable(reward, images))
    together = score(reward, images, texts)
    return [
        _declared(reward),
        _shape(reward, images, texts),
        _in_range(reward, together),
        _same("batch = singles", reward, together, torch.cat([score(reward, images[i : i + 1], texts[i : i + 1])
                                                              for i in range(len(images))])),
        _same("order changes nothing", reward, together, score(reward, images[::-1], texts[::-1]).flip(0)),
        _prompts(reward, score(reward, images[:2], texts, "matrix")),
        _same("paired = diagonal of the matrix", reward, together, score(reward, images, texts, "matrix").diagonal()),
        _modes(reward, texts),
        _gradient(reward, texts),
    ]  # fmt: skip


def _readable(reward: Reward, images: Sequence[Image.Image]) -> tuple[str, ...]:
    plain = score(reward, images, PROMPTS)
    return PROMPTS if plain.isfinite().all() else QUOTED


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Soft colours with a hard edge: neither flat nor noise. ``size`` is (width, height)."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / max(size)
    waves = [np.sin(6 * x * (seed + 1) + 4 * y * k + seed) for k in range(3)]
    pixels = (np.stack(waves, -1) * 100 + 128).astype(np.uint8)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (40 * seed % 256, 200, 255 - 40 * seed % 256)
    return Image.fromarray(pixels)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """An RGB picture in another mode."""
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "P transparent":
        palette = image.quantize(32)
        palette.info["transparency"] = 0
        return palette
    return image.quantize(64) if mode == "P" else image.convert(mode)


def _declared(reward: Reward) -> Law:
    low, high = reward.range
    wrong = [
        name
        for name, fine in {
            "name": bool(reward.name), "preprocessing": bool(reward.preprocessing), "encoder": bool(reward.encoder),
            "origin.model": bool(reward.origin.model), "range": low < high,
            "from_pixels": not reward.differentiable or hasattr(reward, "from_pixels"),
        }.items()
        if not fine
    ]  # fmt: skip
    return Law("says what it is", not wrong, f"missing or wrong: {', '.join(wrong)}" if wrong else reward.origin.model)


@torch.no_grad()
def _shape(reward: Reward, images: Sequence[Image.Image], texts: Sequence[str]) -> Law:
    """One picture against four prompts, and paired with one."""
    features = reward.encode_images(reward.preprocess(images[0])[None])
    matrix = reward.combine(features, reward.encode_texts(list(texts)), "matrix")
    paired = reward.combine(features, reward.encode_texts(list(texts[:1])), "paired")
    found = f"paired {tuple(paired.shape)} {paired.dtype}, matrix {tuple(matrix.shape)} {matrix.dtype}"
    right = paired.shape == (1,) and matrix.shape == (1, len(texts)) and len(features) == 1
    return Law("shapes", right and paired.dtype == matrix.dtype == torch.float32, found.replace("torch.", ""))


def _in_range(reward: Reward, scores: torch.Tensor) -> Law:
    low, high = reward.range
    inside = bool(scores.isfinite().all()) and bool(((scores >= low - 1e-5) & (scores <= high + 1e-5)).all())
    return Law("finite and in range", inside, f"{scores.min():.4g} to {scores.max():.4g} in [{low:g}, {high:g}]")


def _prompts(reward: Reward, matrix: torch.Tensor) -> Law:
    """Scores of one image are the same for all prompts when no prompt is read. (The converse is no law: an image
    without text is equally wrong for every prompt that asks for some.)"""
    if reward.reads_prompt:
        apart = float((matrix.max(1).values - matrix.min(1).values).max())
        return Law("reads prompts", True, f"scores of one image differ by up to {apart:.3g}")
    return Law("prompts do not matter", bool((matrix == matrix[:, :1]).all()))


def _same(name: str, reward: Reward, one: torch.Tensor, other: torch.Tensor) -> Law:
    apart = float(((one - other).abs() / one.abs().clamp(min=1)).max())
    return Law(name, apart <= TOLERANCE[reward.origin.dtype], f"largest difference {apart:.1e}")


def _modes(reward: Reward, texts: Sequence[str]) -> Law:
    failed = [mode for mode in MODES if not _accepts(reward, in_mode(picture((80, 64), 1), mode), texts[0])]
    return Law("every image mode", not failed, f"failed: {', '.join(failed)}" if failed else ", ".join(MODES))


def _accepts(reward: Reward, image: Image.Image, text: str) -> bool:
    try:
        return bool(score(reward, [image], [text]).isfinite().all())
    except (ValueError, OSError, RuntimeError, TypeError, IndexError):
        return False


def _gradient(reward: Reward, texts: Sequence[str]) -> Law:
    """A gradient reaches the pixels of each image, from its own score alone; or none is promised and none comes."""
    arrays = [np.asarray(picture((64, 64), seed)).copy() for seed in range(2)]
    pixels = torch.stack([torch.from_numpy(array).permute(2, 0, 1).float() / 255 for array in arrays])
    pixels.requires_grad_(True)
    differentiable: Any = reward
    if not reward.differentiable:
        return Law(
            "no gradient promised", not hasattr(reward, "from_pixels") or _refuses(differentiable, pixels, texts)
        )
    scores = differentiable.from_pixels(pixels, list(texts[:2]))
    (gradient,) = torch.autograd.grad(scores[0], pixels)
    own, others = float(gradient[0].abs().sum()), float(gradient[1].abs().sum())
    found = f"{own:.3g} to its own image, {others:.3g} to the other"
    return Law("gradient to the pixels", own > 0 and np.isfinite(own) and others == 0, found)


def _refuses(reward: Any, pixels: torch.Tensor, texts: Sequence[str]) -> bool:
    """Several rewards in one have the method; it must not pretend."""
    try:
        return not reward.from_pixels(pixels, list(texts[:2])).requires_grad
    except (AttributeError, ValueError, RuntimeError):
        return True


def known_answers(
    reward: Reward, answers: Sequence[Any], tolerance: float, read: Callable[[str], Image.Image]
) -> Iterator[Law]:
    """``answers`` have `prompt`, `file` and `score`; ``read`` opens the picture of a file name."""
    for one in answers:
        found = float(score(reward, [read(one.file)], [one.prompt])[0])
        said = f"{found:.4f}, published {one.score:.4f}"
        yield Law(f"known answer for {one.file}", abs(found - one.score) <= tolerance, said)
