"""Schedulers by short names, on the model's own noise schedule."""

from __future__ import annotations

import pytest
from diffusers import DDIMScheduler, PNDMScheduler

from visfeedback.plugins import InputError
from visfeedback.sampling.samplers import sampler, sampler_class


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "": "PNDMScheduler",
        "pndm": "PNDMScheduler",
        "ddim": "DDIMScheduler",
        "DDIMScheduler": "DDIMScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler_a": "EulerAncestralDiscreteScheduler",
        "DPM++ 2M": "DPMSolverMultistepScheduler",
        "DPMSolverMultistepScheduler": "DPMSolverMultistepScheduler",
        "unipc": "UniPCMultistepScheduler",
    }.items(),
)
def test_names(name: str, expected: str) -> None:
    assert sampler_class(PNDMScheduler(), name).__name__ == expected


def test_the_noise_schedule_is_kept_and_nothing_is_clipped() -> None:
    """PNDM has no clip_sample and DDIM's default would clip latents to [-1, 1]; a model that asks for it keeps it."""
    made = sampler(PNDMScheduler(beta_end=0.012, beta_schedule="scaled_linear"), "ddim")
    assert isinstance(made, DDIMScheduler)
    assert (made.config["beta_end"], made.config["clip_sample"]) == (0.012, False)
    assert sampler(DDIMScheduler(clip_sample=True), "ddpm").config["clip_sample"] is True


def test_wrong_names_and_samplers_with_noise_of_their_own() -> None:
    for name in ("eulr", "DPMSolverSDEScheduler"):
        with pytest.raises(InputError, match=r"no sampler .* known: .*euler"):
            sampler_class(PNDMScheduler(), name)
