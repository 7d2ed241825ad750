"""Drift is zero until something is learned, and what its formula says after that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from visfeedback.backbones.load import load
from visfeedback.sampling.drift import drift


def test_drift_is_zero_for_a_fresh_lora_and_follows_the_formula_after(tiny_sd: Path) -> None:
    sd = load(str(tiny_sd), device="cpu")
    latents, condition = torch.randn(3, 4, 8, 8), sd.encode_text(["a", "b", "c"])
    sd.add_lora(rank=2)
    assert drift(sd, latents, condition, torch.Generator().manual_seed(0)) == 0.0
    for name, parameter in sd.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator)
    t = sd.process.sample_t(3, generator)
    x_t = sd.process.add_noise(latents, noise, t)
    policy = sd.predict(x_t, t, condition)
    with sd.weights("reference"):
        expected = (policy - sd.predict(x_t, t, condition)).square().mean().item()
    assert expected > 1e-4
    assert drift(sd, latents, condition, torch.Generator().manual_seed(0)) == pytest.approx(expected, rel=1e-6)


def test_more_draws_are_the_mean_of_single_ones(tiny_sd: Path) -> None:
    sd = load(str(tiny_sd), device="cpu")
    sd.add_lora(rank=2)
    for parameter in sd.parameters():
        parameter.data.fill_(0.05)
    latents, condition = torch.randn(2, 4, 8, 8), sd.encode_text(["a", "b"])
    generator = torch.Generator().manual_seed(0)
    single = [drift(sd, latents, condition, generator) for _ in range(3)]
    together = drift(sd, latents, condition, torch.Generator().manual_seed(0), draws=3)
    assert together == pytest.approx(sum(single) / 3)
    with pytest.raises(ValueError, match="1 or more"):
        drift(sd, latents, condition, generator, draws=0)
