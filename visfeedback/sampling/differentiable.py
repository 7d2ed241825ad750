"""Sampling with a gradient from the image back to the network, through as few steps as wanted.

    steps 0 ... first-1   without a graph: nothing is stored, x is a constant after them
    steps first ... S-1   with a graph (DRaFT-K: K = S - first; AlignProp: K drawn anew for each batch)

Cutting the graph at a step gives the gradient that ``detach`` on all predictions before it would give, for the noise
that a path starts from does not depend on the network. Guidance's unconditional branch has no graph unless asked.
Every image has a generator of its own. Everything is written against Process and Backbone; times (S + 1,) come in
descending, 1 = pure noise, the last the clean image's.
May import: types, diffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from visfeedback.diffusion.gaussian import draw
from visfeedback.types.batches import Condition
from visfeedback.types.protocols import Backbone, Process

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B,C,h,w), t (B,)) -> the network's prediction (B,C,h,w)"""


@dataclass(frozen=True)
class Guided:
    """Predictions with classifier-free guidance: u + scale (c - u). Without an unconditional branch: c alone."""

    backbone: Backbone
    condition: Condition
    unconditional: Condition | None = None
    scale: float = 1.0
    whole_graph: bool = False
    """a graph through the unconditional branch, too"""
    checkpointed: bool = False
    """activations are not kept but computed again in the backward pass"""

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.unconditional is None:
            return self._predict(x_t, t, self.condition)
        if not torch.is_grad_enabled():
            both = Condition.cat([self.unconditional, self.condition])
            free, told = self.backbone.predict(x_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
            return free + self.scale * (told - free)
        with nullcontext() if self.whole_graph else torch.no_grad():
            free = self._predict(x_t, t, self.unconditional)
        return free + self.scale * (self._predict(x_t, t, self.condition) - free)

    def _predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            predicted = checkpoint(self.backbone.predict, x_t, t, condition, use_reentrant=False)
            assert isinstance(predicted, Tensor)
            return predicted
        return self.backbone.predict(x_t, t, condition)


@dataclass(frozen=True)
class Sources:
    """Where the noise of each image comes from."""

    generators: tuple[torch.Generator, ...]
    device: torch.device

    @classmethod
    def of(cls, seeds: Sequence[int], device: torch.device) -> Sources:
        return cls(tuple(torch.Generator("cpu").manual_seed(seed) for seed in seeds), device)

    def noise(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape): row i from generator i alone, so that an image does not depend on its batch."""
        rows = [torch.randn(tuple(shape), generator=generator, dtype=dtype) for generator in self.generators]
        return torch.stack(rows).to(self.device)


def descend(predict: Predict, process: Process, x: Tensor, times: Tensor, sources: Sources, eta: float = 0.0) -> Tensor:
    """From x at ``times[0]`` to x at ``times[-1]``, with a graph where gradients are on; no steps, no change.

    eta: 0 deterministic, 1 as random as the process; the step that ends at t = 0 follows the process, too.
    """
    for t, t_next in pairwise(times):
        now, then = (value.expand(len(x)).to(x.device) for value in (t, t_next))
        mean, std = process.step(predict(x, now), x, now, then, eta)
        x = draw(mean, std, sources.noise(x.shape[1:], x.dtype)) if eta else mean
    return x


def sample(
    predict: Predict, process: Process, noise: Tensor, times: Tensor, sources: Sources, first: int, eta: float = 0.0
) -> Tensor:
    """Clean latents (B,C,h,w) whose gradient goes back through the steps from ``first`` on.

    noise (B,C,h,w) is x at ``times[0]``; ``first`` in 0 ... S, S for no gradient at all.
    """
    with torch.no_grad():
        x = descend(predict, process, noise, times[: first + 1], sources, eta)
    return descend(predict, process, x, times[first:], sources, eta)


def predicted_image(predict: Predict, process: Process, x_t: Tensor, t: Tensor) -> Tensor:
    """The clean latents (B,C,h,w) that one prediction at ``t`` (B,) implies, with a graph to the network."""
    return process.to_x0(predict(x_t, t), x_t, t)


def decoded(backbone: Backbone, latents: Tensor, checkpointed: bool = False) -> Tensor:
    """Pixels (B,3,H,W) in [0,1] with a gradient; decoders need the most memory of all, hence ``checkpointed``."""
    if checkpointed and torch.is_grad_enabled():
        pixels = checkpoint(backbone.decode, latents, use_reentrant=False)
        assert isinstance(pixels, Tensor)
        return pixels
    return backbone.decode(latents)
