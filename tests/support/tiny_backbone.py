"""A Backbone of a few dozen numbers in double precision, for gradients that are compared with finite differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from visfeedback.diffusion.ddpm import DDPM
from visfeedback.types.batches import Condition

C, SIDE, D = 2, 2, 3


class TinyBackbone(nn.Module):
    """Latents (2, 2, 2), prompts as 3 numbers, pixels (3, 2, 2); smooth everywhere, float64.

    It counts what it is asked: ``calls`` network rows, and ``graphs`` those of them that made a graph. It offers what
    the protocol names and nothing else: there is no diffusers pipeline behind it.
    """

    latent_shape = (C, SIDE, SIDE)

    def __init__(self, seed: int = 0, prediction_type: Any = "epsilon", process: Any = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        width = C * SIDE * SIDE
        self.linear = nn.Parameter(0.3 * torch.randn(width, width, generator=generator, dtype=torch.float64))
        self.told = nn.Parameter(0.3 * torch.randn(D, width, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(0.1 * torch.randn(width, generator=generator, dtype=torch.float64))
        self.register_buffer("eye", torch.randn(C, 3, generator=generator, dtype=torch.float64))
        betas = torch.linspace(1e-3, 0.2, 50)
        self.process = process or DDPM((1 - betas).cumprod(0), prediction_type, final_alpha=1.0)
        self.calls = self.graphs = 0

    @property
    def device(self) -> torch.device:
        return self.bias.device

    def encode_text(self, prompts: Sequence[str]) -> Condition:
        rows = [[float(len(p)), float(p.count("a")), float(p.count("e"))] for p in prompts]
        return Condition(tokens=0.1 * torch.tensor(rows, dtype=torch.float64)[:, None])

    def decode(self, latents: Tensor) -> Tensor:
        return torch.sigmoid(torch.einsum("bchw,cp->bphw", latents, self.eye))

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("nothing here encodes pictures")

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls += len(x_t)
        flat = x_t.flatten(1).double()
        made = torch.tanh(flat @ self.linear + condition.tokens[:, 0] @ self.told + t.double()[:, None] * self.bias)
        self.graphs += len(x_t) * made.requires_grad
        return made.view_as(x_t)

    @contextmanager
    def weights(self, which: str) -> Iterator[None]:
        yield

    def copy_weights(self, source: str, target: str) -> None:
        raise AssertionError("one set of weights is enough here")


class Brightness:
    """A differentiable reward: how bright a picture is, more so for long prompts; curved, so that order matters."""

    name = "brightness"
    differentiable = True

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        length = pixels.new_tensor([1 + 0.1 * len(prompt) for prompt in prompts])
        return length * pixels.mean(dim=(1, 2, 3)).square()

    def parts_from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.stack([pixels[:, channel].mean(dim=(1, 2)) for channel in range(3)], dim=1)


def derivatives(loss: Any, parameter: nn.Parameter, places: Sequence[int], h: float = 1e-5) -> list[float]:
    """Central differences of ``loss()`` in some elements of a parameter; error of order h^2 = 1e-10."""
    found: list[float] = []
    values = parameter.data.view(-1)
    for place in places:
        before = float(values[place])
        sides: list[float] = []
        for sign in (1, -1):
            values[place] = before + sign * h
            sides.append(float(loss()))
        values[place] = before
        found.append((sides[0] - sides[1]) / (2 * h))
    return found
