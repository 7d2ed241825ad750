"""Paths of a tiny random model, for tests of methods that learn from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from visfeedback.backbones.load import load
from visfeedback.sampling.rollout import Walk, noisy_steps, path_log_probs, roll
from visfeedback.types.batches import Rollouts
from visfeedback.types.protocols import Context

WALK = Walk(3, 3.0, 1.0)


def tiny_policy(folder: Any) -> Any:
    """A backbone with a fresh LoRA."""
    backbone = load(str(folder), device="cpu")
    backbone.add_lora(rank=2)
    return backbone


@contextmanager
def moved(backbone: Any, size: float = 0.05) -> Iterator[Any]:
    """Inside the block the policy is away from its reference."""
    before = [parameter.detach().clone() for parameter in backbone.parameters()]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    try:
        yield backbone
    finally:
        with torch.no_grad():
            for parameter, value in zip(backbone.parameters(), before, strict=True):
                parameter.copy_(value)
                parameter.grad = None


def rollouts(backbone: Any, groups: int = 1, each: int = 4, seed: int = 0) -> Rollouts:
    """Whole paths drawn by the policy as it is, with the reference's log-probabilities; scores are 0, 1, 2, ..."""
    rows = groups * each
    prompts = [f"prompt {row // each}" for row in range(rows)]
    condition, without = backbone.encode_text(prompts), backbone.encode_text([""] * rows)
    paths = roll(backbone, condition, without, range(seed, seed + rows), backbone.latent_shape, WALK)
    whole = Rollouts(
        latents=paths.latents, t=paths.t.expand(rows, -1), log_prob=paths.log_prob, condition=condition,
        scores=torch.arange(float(rows)) % each, group=torch.arange(rows) // each, weight=torch.ones(rows),
        unconditional=without, guidance=WALK.guidance, eta=WALK.eta,
    )  # fmt: skip
    with backbone.weights("reference"):
        found = path_log_probs(backbone, whole, noisy_steps(backbone.process, WALK))
    return Rollouts(**{**vars(whole), "reference_log_prob": found})


def context() -> Context:
    return Context(torch.Generator().manual_seed(0))
