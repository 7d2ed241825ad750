"""Every way in which people call a model of every family, with an adapter on; offloading; attention back ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from peft import LoraConfig
from PIL import Image
from tiny_pipelines import make, vae
from torch import Tensor

import visfeedback as vf
from visfeedback.plugins import InputError
from visfeedback.sampling.fabric import unet, weighting

NAMES = {"sd": "StableDiffusion", "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3", "flux": "Flux"}
WAYS = [
    *[("sd", way) for way in ("ControlNetImg2Img", "ControlNetInpaint")],
    *[("sdxl", way) for way in ("Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint")],
    *[("sd3", way) for way in ("Inpaint", "ControlNet", "ControlNetInpainting")],
    *[("flux", way) for way in ("Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint", "Fill", "Kontext")],
]


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def control(family: str, pipe: Any, extra: int) -> Any:
    """A ControlNet of the family whose last layers say something. ``extra``: channels for the mask of inpainting."""
    if family in ("sd", "sdxl"):
        made: Any = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32))
    elif family == "sd3":
        made = diffusers.SD3ControlNetModel.from_transformer(
            pipe.transformer, num_layers=1, num_extra_conditioning_channels=extra
        )
    else:
        made = diffusers.FluxControlNetModel.from_transformer(
            pipe.transformer, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
        )
    blocks = [made.controlnet_down_blocks] if family in ("sd", "sdxl") else [made.controlnet_blocks]
    for layer in blocks[0]:
        torch.nn.init.normal_(layer.weight, std=0.1)
    return made.eval()


def widened(transformer: Any, channels: int) -> Any:
    """A transformer of the same shape that takes so many channels and still answers with 16."""
    config = dict(transformer.config) | {"in_channels": channels, "out_channels": 16}
    config.pop("_use_default_values", None)  # else out_channels, which was left out, would be so again
    return type(transformer).from_config(config).eval()


def built(family: str, way: str) -> Any:
    """The pipeline of a way of drawing, with random adapter weights on every attention layer."""
    pipe = make(family)
    parts = dict(pipe.components) | {"requires_safety_checker": False, "add_watermarker": False}
    torch.manual_seed(1)
    if (family, way) == ("sd3", "Inpaint"):  # the pipeline asks for 16 channels
        parts |= {"transformer": widened(pipe.transformer, 16), "vae": vae(16).eval()}
    if way == "Fill":
        parts["transformer"] = widened(pipe.transformer, 16 + 16 + 4 * 2**2)
    if way.startswith("ControlNet"):
        parts["controlnet"] = control(family, pipe, extra=int(way.endswith("Inpainting")))
    kind = getattr(diffusers, NAMES[family] + way + "Pipeline")
    made = kind(**{name: part for name, part in parts.items() if name in inspect.signature(kind.__init__).parameters})
    made.set_progress_bar_config(disable=True)
    rank2 = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    denoiser(made).add_adapter(rank2)
    return made


def asked(pipe: Any, photo: Callable[..., Image.Image]) -> dict[str, Any]:
    """Arguments for whatever this pipeline can take."""
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    known = inspect.signature(type(pipe).__call__).parameters
    call: dict[str, Any] = {
        "image": photo(5), "mask_image": mask, "control_mask": mask, "control_image": photo(6), "height": 16,
        "width": 16, "max_sequence_length": 16, "max_area": 256, "_auto_resize": False, "num_inference_steps": 2,
        "output_type": "latent", "prompt": "a red dog",
    }  # fmt: skip
    strength = {"strength": 1.0} if "strength" in known else {}
    return {name: value for name, value in call.items() if name in known} | strength


def steers(draw: Callable[[], Tensor], pipe: Any, photo: Callable[..., Image.Image], **more: Any) -> Any:
    """Bit for bit: steered the same way twice, and plain before and after."""
    plain = draw()
    with vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)], strength=0.8, **more) as session:
        steered = draw()
        assert torch.equal(draw(), steered)
    assert (steered - plain).abs().max() > 1e-5
    assert torch.isfinite(steered).all()
    assert torch.equal(draw(), plain)
    assert session.passes > 0
    return steered


@pytest.mark.parametrize(("family", "way"), WAYS, ids=["-".join(pair) for pair in WAYS])
def test_every_way_of_drawing_with_an_adapter(family: str, way: str, photo: Any) -> None:
    """Without the adapter the steered image is another one: it acted inside the block."""
    pipe = built(family, way)
    call = asked(pipe, photo)

    def draw() -> Tensor:
        return pipe(**call, generator=torch.Generator().manual_seed(0)).images

    steered = steers(draw, pipe, photo)
    denoiser(pipe).disable_adapters()
    with vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)], strength=0.8):
        assert (draw() - steered).abs().max() > 1e-6


def test_flux_control_is_refused_in_one_line(photo: Any) -> None:
    """Its network wants a control picture beside every latent; a reference has none. The pipeline is whole after it."""
    pipe = make("flux")
    parts = {name: part for name, part in pipe.components.items() if name not in ("image_encoder", "feature_extractor")}
    parts["transformer"] = widened(pipe.transformer, 32)
    wide = diffusers.FluxControlPipeline(**parts)
    wide.set_progress_bar_config(disable=True)
    before = dict(wide.transformer.attn_processors)
    with pytest.raises(InputError, match="32 channels; fabric knows 16") as error, vf.fabric(wide, liked=[photo(1)]):
        wide(**asked(wide, photo))
    assert "\n" not in str(error.value)
    assert dict(wide.transformer.attn_processors) == before


def sequential(pipe: Any) -> None:
    """As ``enable_sequential_cpu_offload``, whose "cpu:0" accelerate does not know for the device that it is."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)


OFFLOADS: dict[str, Callable[[Any], None]] = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential": sequential,
    "group": lambda pipe: denoiser(pipe).enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
}


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("offload", OFFLOADS)
def test_offloaded_networks(family: str, offload: str, tiny: Any, draw: Any, photo: Any) -> None:
    """Accelerate's and diffusers' own hooks, here with the CPU as the device that computes: weights that wait as meta
    tensors come back for references, too, and the image is that of the pipeline without offloading."""
    refs = {"liked": [photo(1)], "disliked": [photo(2)], "strength": 0.8}
    with vf.fabric(tiny(family), **refs) as session:
        expected = draw(tiny(family))
    pipe = make(family)
    OFFLOADS[offload](pipe)
    waiting = {parameter.device.type for parameter in denoiser(pipe).parameters()}
    assert waiting == ({"meta"} if offload == "sequential" else {"cpu"})
    with vf.fabric(pipe, **refs) as offloaded:
        assert torch.equal(draw(pipe), expected)
        assert torch.equal(draw(pipe), expected)
    assert offloaded.passes == session.passes


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_waiting_on_the_cpu_is_exact_and_8_bits_are_close(family: str, tiny: Any, draw: Any, photo: Any) -> None:
    """Half a step of 254 of the largest value of a token: under 1% of it, far less than what references change."""
    pipe, refs = tiny(family), {"liked": [photo(1)], "disliked": [photo(2)], "strength": 0.8}
    plain, drawn = draw(pipe), {}
    for name, way in {"full": {}, "cpu": {"keep": "cpu"}, "8 bits": {"bits": 8}}.items():
        with vf.fabric(pipe, **refs, **way) as session:
            draw(pipe)
            drawn[name] = draw(pipe), session.bank.bytes
    assert torch.equal(drawn["cpu"][0], drawn["full"][0])
    assert drawn["8 bits"][1] < 0.4 * drawn["full"][1]
    rounding, effect = ((other - drawn["full"][0]).square().mean() ** 0.5 for other in (drawn["8 bits"][0], plain))
    assert 0 < rounding < 0.1 * effect


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_compiled_networks(family: str, photo: Any, draw: Any) -> None:
    """Traced by dynamo: the same image as without, with all passes of references made once."""
    pipe = make(family)
    with vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)]) as session:
        expected = draw(pipe)
    denoiser(pipe).compile(backend="eager")
    with vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)]) as compiled:
        assert torch.allclose(draw(pipe), expected, atol=1e-5)
    assert compiled.passes == session.passes


@pytest.fixture
def active() -> Any:
    """The dispatcher's active back end is everybody's; it is put back."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash"])
@pytest.mark.parametrize("family", NAMES)
def test_back_ends_of_the_dispatcher(
    family: str, backend: str, photo: Any, draw: Any, active: Any, monkeypatch: Any
) -> None:
    """set_attention_backend reaches our processors, before the block and inside it; one that takes no mask gets the
    weights on channels of its own. All draw the same image."""
    seen: list[Any] = []
    dispatch = weighting._dispatch
    monkeypatch.setattr(
        weighting, "_dispatch", lambda *args, **options: seen.append(options) or dispatch(*args, **options)
    )
    pipe = make(family)
    with vf.fabric(pipe, liked=[photo(1)], strength=0.5):
        expected = draw(pipe)
    seen.clear()
    with vf.fabric(pipe, liked=[photo(1)], strength=0.5):
        denoiser(pipe).set_attention_backend(backend)
        assert (draw(pipe) - expected).abs().max() <= 2e-5 * max(1.0, float(expected.abs().max()))
    assert {str(getattr(one["backend"], "value", one["backend"])) for one in seen} == {backend}
    masked = any(one.get("attn_mask") is not None for one in seen)
    assert masked == (backend != "_native_flash")
    denoiser(pipe).reset_attention_backend()


def test_xformers_serves_where_it_was_chosen() -> None:
    """Our processor in place of diffusers' xformers one asks the dispatcher for xformers, without a mask."""

    class XFormersAttnProcessor: ...

    class AttnProcessor2_0: ...

    assert unet.Processor(XFormersAttnProcessor())._route == {"backend": "xformers"}
    assert unet.Processor(AttnProcessor2_0())._route == {"backend": None}
    assert not weighting.takes_masks("xformers")
    assert weighting.takes_masks("native")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "backend", ["native", "_native_flash", "_native_efficient", "_native_cudnn", "flash", "xformers"]
)
def test_back_ends_of_a_gpu(backend: str) -> None:
    """Each kernel equals PyTorch's own in double precision, within what bfloat16 allows."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, k1, v1 = (torch.randn(2, 64, 4, 64, generator=generator) for _ in range(5))
    extra = weighting.references([(k1[:1].double(), v1[:1].double())], [0.3])
    expected = weighting.weighted(query.double(), key.double(), value.double(), extra)
    half = weighting.references([(k1[:1].cuda().bfloat16(), v1[:1].cuda().bfloat16())], [0.3])
    try:
        got = weighting.weighted(*(t.cuda().bfloat16() for t in (query, key, value)), half, backend=backend)
    except (RuntimeError, ImportError, NameError) as error:
        assert backend not in ("native", "_native_efficient"), f"every GPU has it: {error}"
        pytest.skip(f"{backend} is not installed here: {str(error)[:80]}")
    assert (got.cpu().double() - expected).abs().max() <= 0.05


def test_a_transformer_that_reuses_attention_is_refused(photo: Any) -> None:
    """References would be given what the drawn image's step before left behind."""
    pipe = make("flux")
    pipe.transformer.enable_cache(diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500,
    ))  # fmt: skip
    with pytest.raises(InputError, match=r"pipe.transformer.disable_cache\(\)"), vf.fabric(pipe, liked=[photo(1)]):
        pass
    pipe.transformer.disable_cache()
    with vf.fabric(pipe, liked=[photo(1)]):
        pass


def test_tokens_split_over_devices_are_refused(photo: Any) -> None:
    pipe = make("sd3")
    pipe.transformer.transformer_blocks[0].attn.processor._parallel_config = object()
    with pytest.raises(InputError, match="parallel_config"), vf.fabric(pipe, liked=[photo(1)]):
        pass
