"""Schedulers by short names, on the model's own noise schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from visfeedback.backbones.load import load
from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import Walk, draw_with
from visfeedback.sampling.samplers import UNSEEDED, draws_noise, sampler, sampler_class


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


KINDS = sorted({kind.__name__ for kind in DDIMScheduler().compatibles} - {UNSEEDED})


@pytest.mark.parametrize("name", KINDS)
def test_random_steps_are_known_as_such(tiny, name) -> None:
    """Two images that begin with the same noise and have seeds of their own differ exactly where steps are random."""
    walk = Walk(4, 1.0, 0.0, sampler=name)
    images = draw_with(tiny, ["a", "a"], ["", ""], [1, 2], walk, [9, 9]).images
    assert draws_noise(tiny.pipe.scheduler, name) == (not torch.equal(*images))


def test_what_a_model_says_of_its_solver_counts() -> None:
    """DPM-Solver++ is random when the model's own settings ask for the stochastic one."""
    assert not draws_noise(DPMSolverMultistepScheduler(), "")
    assert draws_noise(DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "")


@pytest.fixture(scope="module")
def tiny(tiny_sd) -> Any:
    return load(str(tiny_sd), device="cpu")
