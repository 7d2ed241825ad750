"""FABRIC under adapters, ControlNets, other pipelines of a model, other samplers, and torch.compile."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from tiny_pipelines import make, sd
from torch import Tensor

import visfeedback as vf
from visfeedback.sampling.fabric.latents import noised


def steers(pipe: Any, photo: Any, **call: Any) -> Any:
    """The session, after checking that references change the image and leave the pipeline as it was."""

    def draw() -> Tensor:
        size = {"height": 16, "width": 16} if "image" not in call or "control_image" in call else {}
        common = {"num_inference_steps": 3, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        return pipe(prompt="a red dog", **(size | common | call)).images

    plain = draw()
    with vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)], strength=0.8) as session:
        steered = draw()
        assert torch.equal(draw(), steered)
    assert (steered - plain).abs().max() > 1e-4
    assert torch.isfinite(steered).all()
    assert torch.equal(draw(), plain)
    return session


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_lora(family: str, photo: Any, draw: Any) -> None:
    """The adapter acts inside the block, references are computed anew when it changes, and its scale counts."""
    pipe = make(family)
    part = pipe.unet if family == "sd" else pipe.transformer
    part.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    options = {"cross_attention_kwargs" if family == "sd" else "joint_attention_kwargs": {"scale": 0.5}}
    with vf.fabric(pipe, liked=[photo(1)], strength=0.8) as session:
        tuned = draw(pipe)
        once = session.passes
        half = draw(pipe, **options)
        assert session.passes == 2 * once
        part.disable_adapters()
        base = draw(pipe)
        assert session.passes == 3 * once
        part.enable_adapters()
        assert torch.equal(draw(pipe), tuned)
        assert session.passes == 3 * once
        with torch.no_grad():
            next(p for name, p in part.named_parameters() if "lora_B" in name).add_(0.5)
        retrained = draw(pipe)
        assert session.passes == 4 * once
    images = [tuned, half, base, retrained]
    assert all((a - b).abs().max() > 1e-6 for i, a in enumerate(images) for b in images[:i])
    part.disable_adapters()
    with vf.fabric(make(family), liked=[photo(1)], strength=0.8) as plain:
        assert torch.equal(draw(plain.pipe), base)


def test_controlnet(photo: Any) -> None:
    pipe = make("sd")
    control = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32))
    for layer in control.controlnet_down_blocks:
        torch.nn.init.normal_(layer.weight, std=0.1)
    guided = diffusers.StableDiffusionControlNetPipeline(**pipe.components, controlnet=control.eval())
    guided.set_progress_bar_config(disable=True)
    assert steers(guided, photo, image=Image.new("RGB", (16, 16), "red")).passes == 6


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_image_to_image_uses_the_part_of_the_window_it_draws(family: str, photo: Any) -> None:
    """Half of 4 steps, from step 2 on: with the window (0.5, 0.5) only step 2 has references."""
    other = diffusers.AutoPipelineForImage2Image.from_pipe(make(family))
    other.set_progress_bar_config(disable=True)
    more = {"max_sequence_length": 16} if family in ("sd3", "flux") else {}
    call = {"image": photo(5), "strength": 0.5, "num_inference_steps": 4, "output_type": "latent", **more}
    steers(other, photo, **call)
    with vf.fabric(other, liked=[photo(1)], window=(0.5, 0.5)) as session:
        other(prompt="a dog", generator=torch.Generator().manual_seed(0), **call)
    assert session.passes == 1


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(channels: int, photo: Any) -> None:
    """Also with a UNet made for it, which gets a mask and the masked picture beside the latents."""
    parts = dict(make("sd").components)
    if channels == 9:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            parts["unet"] = sd(channels=9).unet.eval()
    pipe = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    steers(pipe, photo, image=photo(5), mask_image=mask, strength=1.0)


def test_compiled(photo: Any, draw: Any) -> None:
    """Traced by dynamo, in place and wrapped: the same image as without."""
    pipe = make("sd")
    with vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)]):
        expected = draw(pipe)
    pipe.unet.compile(backend="eager")
    with vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)]) as session:
        assert torch.allclose(draw(pipe), expected, atol=1e-5)
        assert session.passes == 6
    pipe = make("sd")
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)]) as session:
        assert torch.allclose(draw(pipe), expected, atol=1e-5)
        assert session.passes == 6


SAMPLERS = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "KDPM2DiscreteScheduler",
]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_with_references(name: str, tiny: Any, draw: Any, photo: Any) -> None:
    pipe = tiny("sd")
    before = pipe.scheduler
    options = {"PNDMScheduler": {"skip_prk_steps": True}}.get(name, {})
    pipe.scheduler = getattr(diffusers, name).from_config(before.config, **options)
    try:
        plain = draw(pipe)
        with vf.fabric(pipe, liked=[photo(1)]) as session:
            steered = draw(pipe)
    finally:
        pipe.scheduler = before
    assert torch.isfinite(steered).all()
    assert (steered - plain).abs().max() > 1e-5
    assert session.passes >= 2


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("karras", [False, True])
def test_noised_references_are_what_sigma_samplers_feed_the_network(name: str, karras: bool) -> None:
    """scale_model_input(z + sigma eps), the form of the released code, at every step; 1e-3 where a timestep is not
    whole, since diffusers places those by linear interpolation of sigma and we by that of its logarithm."""
    kind = getattr(diffusers, name)
    more = {"use_karras_sigmas": True} if karras and "Ancestral" not in name else {}
    scheduler = kind(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **more)
    scheduler.set_timesteps(10)
    z, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        expected = (z + sigma * eps) / (sigma**2 + 1) ** 0.5
        assert (noised(scheduler, z, eps, float(t)) - expected).abs().max() <= (5e-3 if karras else 1e-3)


@pytest.mark.parametrize("name", ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_noised_references_are_what_the_scheduler_adds(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(7)
    z, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    add = scheduler.add_noise if name == "DDIMScheduler" else lambda z, eps, t: scheduler.scale_noise(z, t, eps)
    for t in scheduler.timesteps:
        assert torch.allclose(noised(scheduler, z, eps, float(t)), add(z, eps, t[None]), atol=1e-5)
