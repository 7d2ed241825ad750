"""The reward of a run: pictures and prompts in, checked scores out, patiently when it is a server.

May import: types, plugins, rewards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image, fromarray
from torch import Tensor

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import by_size, pick
from visfeedback.training.settings_online import RewardChoice


class Unscored(InputError):
    """A reward gave no usable score."""


class Scorer:
    """The trained reward, and the one that is only watched."""

    def __init__(self, choice: RewardChoice, device: str) -> None:
        self.choice = choice
        self.reward: Any = rewards.load(choice.name, device, choice.dtype)
        self.watched: Any = rewards.load(choice.watch, device, choice.dtype) if choice.watch else None

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """(B, 1) native scores, or (B, 2) with those of the watched reward. Raises Unscored."""
        judges = [self.reward] if self.watched is None else [self.reward, self.watched]
        return torch.stack([self._patiently(judge, images, prompts) for judge in judges], dim=1)

    def look(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) scores of the watched reward, where the method asks the trained one itself."""
        return self._patiently(self.watched, pictures(pixels), prompts)

    def _patiently(self, reward: Any, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """What a server does not answer is asked again; a program that fails would fail again."""
        if not is_server(reward):
            return checked(reward, images, prompts)
        wait = self.choice.wait
        for _ in range(self.choice.retries):
            try:
                return checked(reward, images, prompts)
            except Exception:  # whatever its client raises when nobody answers
                time.sleep(wait)
                wait *= 2
        try:
            return checked(reward, images, prompts)
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            attempts = self.choice.retries + 1
            raise Unscored(f"reward {reward.name} does not answer ({attempts} attempts): {line}") from None


def is_server(reward: Any) -> bool:
    """Whether its answers, or those of a part of a mix, come from elsewhere: neither weights nor a program are here."""
    if parts := getattr(reward, "rewards", None):
        return any(is_server(part) for part in parts)
    return not reward.origin.checkpoint_sha256 and reward.origin.model != "program"


def checked(reward: Any, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
    """(B,) float32 scores on the CPU. Raises Unscored for another shape and for what is no number."""
    scores = torch.empty(len(images))
    with torch.no_grad():
        texts = reward.encode_texts(list(prompts))
        for rows, pixels in by_size([reward.preprocess(image) for image in images]):
            found = reward.combine(reward.encode_images(pixels), pick(texts, rows), "paired")
            if tuple(found.shape) != (len(rows),):
                raise Unscored(
                    f"reward {reward.name} returned scores of shape {tuple(found.shape)} for {len(rows)} images; "
                    f"expected ({len(rows)},)"
                )
            scores[rows] = found.float().cpu()
    wrong = (~scores.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise Unscored(
            f"reward {reward.name} gave {scores[wrong[0]]:g} to an image of {prompts[wrong[0]]!r}; expected a number: "
            "choose another --reward.name, or leave this prompt out"
        )
    return scores


def pictures(pixels: Tensor) -> list[Image]:
    """(B, 3, H, W) in [0, 1] -> RGB images, rounded as pipelines do."""
    array = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [fromarray(image) for image in array]
