"""The network of HPSv3: image tower and language model of Qwen2-VL with a small head, and what its images look like.

The published code casts the whole network to bf16, the rotary frequencies too, in training and in use. So the
frequencies are rounded to bf16 here whatever the dtype, and the angles of the image tower are computed in bf16 as
transformers 4.45 computed them; those of the language model in fp32. May import: types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visfeedback.plugins import InputError

PIXELS = 256 * 28 * 28  # to which every image is resized, about
PATCH, MERGE, FRAMES = 14, 2, 2  # of the image tower: pixels, patches per token and side, copies of a still image
MAX_RATIO = 200


class Network(nn.Module):
    """Image tower, language model and head of a checkpoint."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        from transformers import AutoModel

        base = AutoModel.from_config(config, dtype=dtype)
        self.visual = base.visual
        self.language_model = base.language_model
        width = config.text_config.hidden_size
        self.rm_head = nn.Sequential(
            nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        ).float()
        text = self.language_model.rotary_emb
        text.inv_freq = text.inv_freq.bfloat16().float()
        self.visual.rotary_pos_emb = BfloatRotary(self.visual.rotary_pos_emb)


class BfloatRotary(nn.Module):
    """Angles of the image tower in bf16: positions, frequencies, their products and the cosines are rounded."""

    def __init__(self, published: Any) -> None:
        super().__init__()
        self.inv_freq = nn.Buffer(published.inv_freq.float(), persistent=False)
        self._join = published.recomposition_frequencies

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].bfloat16() * self.inv_freq.bfloat16()
        return self._join(angles.cos().float()), self._join(angles.sin().float())


def smart_size(height: int, width: int) -> tuple[int, int]:
    """Sides as multiples of 28 whose product is close to 200,704 and whose ratio is close to the image's.

    Qwen2-VL's rule with one number for the least and the most pixels. Raises InputError for sides of more than 1:200.
    """
    unit = PATCH * MERGE
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise InputError(f"sides of {width} x {height}; hpsv3 reads images whose sides are at most 1:{MAX_RATIO}")
    rounded = [max(unit, round(side / unit) * unit) for side in (height, width)]
    if rounded[0] * rounded[1] == PIXELS:
        return rounded[0], rounded[1]
    if rounded[0] * rounded[1] > PIXELS:
        scale = math.sqrt(height * width / PIXELS)
        return math.floor(height / scale / unit) * unit, math.floor(width / scale / unit) * unit
    scale = math.sqrt(PIXELS / (height * width))
    return math.ceil(height * scale / unit) * unit, math.ceil(width * scale / unit) * unit


def patches(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N * H/14 * W/14, 3 * 2 * 14 * 14): patches in blocks of 2 x 2, each twice in time."""
    count, channels, height, width = pixels.shape
    high, wide = height // (PATCH * MERGE), width // (PATCH * MERGE)
    blocks = pixels.reshape(count, channels, high, MERGE, PATCH, wide, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    twice = blocks.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, FRAMES, -1, -1)
    return twice.reshape(count * high * wide * MERGE**2, channels * FRAMES * PATCH**2)


def shared_prefix(rows: Sequence[Tensor]) -> int:
    """How many tokens all rows begin with; at most all but the last, so that each row has a rest."""
    length = min(len(row) for row in rows) - 1
    same = torch.stack([row[:length] for row in rows]) == rows[0][:length]
    return int(same.all(0).long().cumprod(0).sum())


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of ``Network``, from the layout of transformers 4.45 or a later one, without ``lm_head``."""
    new: dict[str, Tensor] = {}
    for name, value in state.items():
        for old, own in (
            ("model.language_model.", "language_model."),
            ("model.visual.", "visual."),
            ("model.", "language_model."),
        ):
            if name.startswith(old):
                name = own + name.removeprefix(old)
                break
        new[name] = value
    new.pop("lm_head.weight", None)
    return new
