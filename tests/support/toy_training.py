"""Toy runs of any method: a reward that is exact and quick, and settings that finish in a second or two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy
import torch
from PIL.Image import Image
from torch import Tensor

from visfeedback.config import merge
from visfeedback.training.settings import TrainSettings, settings_for
from visfeedback.types.records import Origin

ROLLOUT = {"prompts": ["a", "bb", "ccc"], "prompts_per_round": 2, "per_prompt": 2, "steps": 3, "guidance": 2.0}
"""a round is 4 images: 2 steps of 2"""


class Brightness:
    """Mean of an image's pixels. ``spoil`` changes the scores of a batch before they are returned."""

    name, range, differentiable, reads_prompt = "brightness", (0.0, 1.0), True, False
    preprocessing, encoder = "rgb", "pixels"

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda scores: scores) -> None:
        self.spoil, self.asked, self.origin = spoil, 0, Origin(model="program")

    def preprocess(self, image: Image) -> Tensor:
        return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255

    def encode_images(self, pixels: Tensor) -> Tensor:
        return pixels

    def encode_texts(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        self.asked += 1
        scores = self.spoil(images.mean(dim=(1, 2, 3)))
        return scores if pairing == "paired" else scores[:, None].expand(-1, len(texts))

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return pixels.mean(dim=(1, 2, 3))


class Darkness(Brightness):
    """How dark an image is, 0 to 1."""

    name = "darkness"

    def __init__(self) -> None:
        super().__init__(lambda scores: 1 - scores)


def toy_settings(name: str, model: Any, **changes: Any) -> TrainSettings:
    """Settings of method ``name`` on the model folder; `data` must name pairs where the method eats those."""
    base = {
        "model": {"id": str(model)}, "method": {"name": name}, "rollout": ROLLOUT,
        "reward": {"name": "brightness", "wait": 0.0}, "optim": {"steps": 4, "batch_size": 2, "lr": 1e-3},
        "lora": {"rank": 2}, "eval": {"count": 0},
        "engine": {"device": "cpu", "threads": 1, "checkpoint_every": 1, "keep": 9, "drift_every": 0},
    }  # fmt: skip
    return settings_for(name).model_validate(merge(base, changes))
