"""The network that learns: a backbone with a LoRA, fresh or started from an existing one, and its running average.

May import: types, backbones, sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from visfeedback.backbones.load import load
from visfeedback.plugins import InputError
from visfeedback.sampling.generate import derive_seed
from visfeedback.training.settings import TrainSettings


def load_policy(settings: TrainSettings, device: str) -> Any:
    """The backbone with a LoRA that equals the reference: nothing is learned yet.

    With `model.adapter` policy and reference both start as the model with that LoRA, else as the bare model; with
    `model.reference` bare the reference is that in any case. Dropout is this run's own either way.
    Raises InputError when model or adapter is missing, damaged, or they do not fit.
    """
    model, lora, seed = settings.model, settings.lora, settings.engine.seed
    backbone = load(model.id, adapter=model.adapter, dtype=model.dtype, device=device)
    if model.adapter:
        if model.reference == "start":
            backbone.freeze_reference()
        elif backbone.adapts_text:
            raise InputError(  # prompts are encoded once, for policy and reference
                f"adapter {model.adapter!r} changes the text encoder, so no reference can be bare; "
                'take model.reference = "start"'
            )
        backbone.set_dropout(lora.dropout)
    else:
        backbone.add_lora(lora.rank, lora.alpha or None, lora.targets, lora.dropout, derive_seed(seed, "lora", 0))
    if settings.engine.gradient_checkpointing:
        backbone.checkpoint_gradients()
    return backbone


def weights_of(backbone: Any) -> dict[str, Tensor]:
    """A copy of the trained weights on the CPU, by name."""
    return {name: parameter.detach().cpu().clone() for name, parameter in backbone.named_parameters()}


def put_weights(backbone: Any, weights: Mapping[str, Tensor]) -> None:
    """The inverse of `weights_of`."""
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            parameter.copy_(weights[name])


class Average:
    """Exponential running average of parameters: average <- decay * average + (1 - decay) * parameter."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in named}

    @torch.no_grad()
    def update(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        for name, parameter in named:
            self.values[name].lerp_(parameter.detach(), 1 - self.decay)

    def load(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self.values.items():
            value.copy_(values[name])


@contextmanager
def averaged(backbone: Any, average: Average | None) -> Iterator[None]:
    """Inside the block the policy is its running average, if there is one: what `adapter/` will hold."""
    if average is None:
        yield
        return
    own = {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}
    put_weights(backbone, average.values)
    try:
        yield
    finally:
        put_weights(backbone, own)


def park(backbone: Any) -> None:
    """Encoders whose work is cached leave the accelerator; on a CPU they stay where they are."""
    for network in backbone.encoders:
        network.to("cpu")


@contextmanager
def unparked(backbone: Any) -> Iterator[None]:
    """Inside the block the whole pipeline is on one device again."""
    before = [next(network.parameters()).device for network in backbone.encoders]
    for network in backbone.encoders:
        network.to(backbone.device)
    try:
        yield
    finally:
        for network, device in zip(backbone.encoders, before, strict=True):
            network.to(device)
