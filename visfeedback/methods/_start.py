"""Where methods that draw their own images begin: noise, times, and the guided network for a batch of prompts.

May import: types, sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visfeedback.sampling.differentiable import Guided, Sources
from visfeedback.types.batches import PromptBatch
from visfeedback.types.protocols import Backbone


@dataclass(frozen=True)
class Start:
    """All that denoising a batch takes."""

    predict: Guided
    noise: Tensor  # (B, C, h, w) at times[0]
    times: Tensor  # (S + 1,) falling, the last one 0
    sources: Sources


def start(backbone: Backbone, batch: PromptBatch, guide_whole: bool = False, checkpointed: bool = False) -> Start:
    """Noise follows from the images' seeds; the unconditional branch is told the prompts' negatives."""
    sources = Sources.of(batch.seeds, backbone.device)
    condition = backbone.encode_text([prompt.text for prompt in batch.prompts])
    guided = batch.guidance > 1  # 0 and 1: the network as it is
    unconditional = backbone.encode_text([prompt.negative for prompt in batch.prompts]) if guided else None
    predict = Guided(backbone, condition, unconditional, batch.guidance, guide_whole, checkpointed)
    precision = torch.promote_types(next(backbone.parameters()).dtype, torch.float32)  # of what is trained
    noise = sources.noise(backbone.latent_shape, precision)
    return Start(predict, noise, backbone.process.times(batch.steps).to(backbone.device), sources)
