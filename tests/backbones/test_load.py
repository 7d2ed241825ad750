"""Everything a model may be named by leads to the same images; everything else to one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from visfeedback import plugins
from visfeedback.backbones import sources
from visfeedback.backbones.load import families, load_pipeline, pick_device
from visfeedback.plugins import InputError


def picture(pipe: Any) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(5)
    return np.array(pipe("a red dog", generator=generator, num_inference_steps=3).images[0])


@pytest.fixture(scope="session")
def expected(tiny_sd: Path) -> np.ndarray:
    """The image that stock diffusers makes."""
    stock = StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=torch.float32, safety_checker=None)
    return picture(stock)


def test_a_folder(tiny_sd: Path, expected: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_pipeline(str(tiny_sd), device="cpu")
    assert np.array_equal(picture(loaded.pipe), expected)
    assert (loaded.family, loaded.model, loaded.adapter) == ("sd", str(tiny_sd), "")
    assert capfd.readouterr().err == ""  # no bars but our own


def test_a_half_precision_folder_is_computed_in_one_precision(tiny_sd: Path, tmp_path: Path) -> None:
    """Stored fp16, asked fp32: without an explicit dtype transformers and diffusers would choose differently."""
    StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=torch.float16, safety_checker=None).save_pretrained(tmp_path)
    pipe = load_pipeline(str(tmp_path), device="cpu").pipe
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    assert picture(pipe).shape == (16, 16, 3)


def test_a_model_of_a_world(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "split_reference", lambda name: ("dots", "sd") if name == "dots:sd" else None)
    monkeypatch.setattr(plugins, "world", lambda name: SimpleNamespace(model_folder=lambda part: tiny_sd))
    loaded = load_pipeline("dots:sd", device="cpu")
    assert loaded.model == "dots:sd"
    assert loaded.revision == sources.model_revision(tiny_sd)


def test_a_hub_id_is_read_from_the_cache(
    tiny_sd: Path, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's layout is models--OWNER--NAME/{refs/main, snapshots/COMMIT}; the revision is the commit."""
    home, commit = tmp_path / "models--me--tiny", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_sd, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "diffusers.pipelines.pipeline_utils.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = load_pipeline("me/tiny", device="cpu")
    assert loaded.revision == commit
    assert np.array_equal(picture(loaded.pipe), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file(tiny_sd: Path, expected: np.ndarray, tmp_path: Path, suffix: str) -> None:
    """In the names of the original LDM code, with the configuration in a folder beside it or named."""
    pipe = load_pipeline(str(tiny_sd), device="cpu").pipe
    state = ldm_state(pipe)
    file = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state}, file)
    else:
        save_file(state, file)
    assert np.array_equal(picture(load_pipeline(str(file), config=str(tiny_sd), device="cpu").pipe), expected)
    shutil.copytree(tiny_sd, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    loaded = load_pipeline(str(file), device="cpu")
    assert np.array_equal(picture(loaded.pipe), expected)
    assert loaded.revision == sources.fingerprint([file])


def test_a_single_file_without_configuration_says_what_to_fetch(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    save_file(ldm_state(load_pipeline(str(tiny_sd), device="cpu").pipe), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="hf download stable-diffusion-v1-5/stable-diffusion-v1-5"):
        load_pipeline(str(tmp_path / "model.safetensors"), device="cpu")


def test_the_revision_follows_the_content(tiny_sd: Path, make_tiny_sd: Callable[..., Path], tmp_path: Path) -> None:
    """Same content elsewhere: same revision. One changed weight of the same shape: another. A card: no matter."""
    copy = Path(shutil.copytree(tiny_sd, tmp_path / "copy"))
    (copy / "README.md").write_text("a card")
    assert sources.model_revision(copy) == sources.model_revision(tiny_sd)
    assert sources.model_revision(make_tiny_sd(seed=1)) != sources.model_revision(tiny_sd)


def test_large_files_are_fingerprinted_by_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 4 samples of 10 bytes of 100, the first and last byte and the length count."""
    monkeypatch.setattr(sources, "WHOLE_BYTES", 50)
    monkeypatch.setattr(sources, "SAMPLES", 4)
    monkeypatch.setattr(sources, "SAMPLE_BYTES", 10)
    contents = [b"a" * 100, b"b" + b"a" * 99, b"a" * 99 + b"b", b"a" * 101]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    assert len({sources.fingerprint([tmp_path / str(n)]) for n in range(4)}) == 4


def broken(tiny_sd: Path, where: Path) -> dict[str, str]:
    """Wrong inputs and the words their errors must contain."""
    other = Path(shutil.copytree(tiny_sd, where / "other"))
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipelin"}))
    torn = Path(shutil.copytree(tiny_sd, where / "torn"))
    weights = torn / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    missing = Path(shutil.copytree(tiny_sd, where / "missing"))
    (missing / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    empty = where / "empty"
    empty.mkdir()
    nojson = Path(shutil.copytree(tiny_sd, where / "nojson"))
    (nojson / "model_index.json").write_text("{")
    (where / "a.png").write_bytes(b"x")
    (where / "a.safetensors").write_bytes(b"x" * 100)
    return {
        str(other): "did you mean 'StableDiffusionPipeline'",
        str(torn): "damaged",
        str(missing): "damaged or incomplete",
        str(empty): "no model_index.json",
        str(nojson): "missing or damaged",
        str(where / "a.png"): ".safetensors, .ckpt",
        str(where / "a.safetensors"): "damaged",
        str(where / "nowhere"): "neither a folder nor a file",
        "me/nowhere": "hf download me/nowhere",
        "no such thing": "neither a folder nor a file",
        "store:x": "neither a folder nor a file",
    }


def test_wrong_models_get_one_line(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for model, words in broken(tiny_sd, tmp_path).items():
        with pytest.raises(InputError) as caught:
            load_pipeline(model, device="cpu")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_devices_and_precisions(tiny_sd: Path) -> None:
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for device in ("tpu", "cuda:99", "cuda:x"):
        with pytest.raises(InputError, match="no device"):
            pick_device(device)
    with pytest.raises(InputError, match="did you mean 'fp16'"):
        load_pipeline(str(tiny_sd), dtype="f16", device="cpu")  # pyright: ignore[reportArgumentType]


def test_every_process_of_a_launcher_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs: processes 0, 1, 2 get 0, 1, 0. Without a launcher `cuda` stays what torch takes it for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert pick_device("auto") == torch.device("cuda")
    for rank, index in (("0", 0), ("1", 1), ("2", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", index)
        assert pick_device("cuda:1") == torch.device("cuda", 1)
        assert pick_device("cpu") == torch.device("cpu")


def test_families_are_the_files_of_the_room() -> None:
    assert families()["StableDiffusionPipeline"].__name__ == "visfeedback.backbones.sd"


def ldm_state(pipe: Any) -> dict[str, torch.Tensor]:
    """The pipeline's weights under the names of the original Stable Diffusion code (two levels, one layer each)."""
    state = {}
    for name, value in pipe.unet.state_dict().items():
        table = {} if ".attentions." in name else UNET_LAYERS
        state["model.diffusion_model." + rename(name, UNET_BLOCKS, table)] = value.clone()
    for name, value in pipe.vae.state_dict().items():
        attention = ".attentions." in name and name.endswith("weight") and value.ndim == 2
        table = VAE_ATTENTION if ".attentions." in name else VAE_LAYERS
        value = value[:, :, None, None] if attention else value  # the original attention is a 1x1 convolution
        state["first_stage_model." + rename(name, VAE_BLOCKS, table)] = value.clone()
    for name, value in pipe.text_encoder.state_dict().items():
        state["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = value.clone()
    return {name: value.contiguous() for name, value in state.items()}


def rename(name: str, blocks: dict[str, str], layers: dict[str, str]) -> str:
    """Replace the block that the name starts with, and the layer names inside it."""
    old = next(block for block in blocks if name.startswith(block))
    rest = name.removeprefix(old)
    for word, original in layers.items():
        rest = rest.replace(word, original)
    return blocks[old] + rest


UNET_BLOCKS = {
    "conv_in.": "input_blocks.0.0.",
    "down_blocks.0.resnets.0.": "input_blocks.1.0.",
    "down_blocks.0.attentions.0.": "input_blocks.1.1.",
    "down_blocks.0.downsamplers.0.conv.": "input_blocks.2.0.op.",
    "down_blocks.1.resnets.0.": "input_blocks.3.0.",
    "down_blocks.1.attentions.0.": "input_blocks.3.1.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    **{f"up_blocks.{i}.resnets.{k}.": f"output_blocks.{2 * i + k}.0." for i in (0, 1) for k in (0, 1)},
    **{f"up_blocks.{i}.attentions.{k}.": f"output_blocks.{2 * i + k}.1." for i in (0, 1) for k in (0, 1)},
    "up_blocks.0.upsamplers.0.conv.": "output_blocks.1.2.conv.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
UNET_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_BLOCKS = {
    "encoder.down_blocks.0.resnets.": "encoder.down.0.block.",
    "encoder.down_blocks.1.resnets.": "encoder.down.1.block.",
    "encoder.down_blocks.0.downsamplers.0.": "encoder.down.0.downsample.",
    "decoder.up_blocks.0.resnets.": "decoder.up.1.block.",
    "decoder.up_blocks.1.resnets.": "decoder.up.0.block.",
    "decoder.up_blocks.0.upsamplers.0.": "decoder.up.1.upsample.",
    **{f"{p}.mid_block.resnets.{k}.": f"{p}.mid.block_{k + 1}." for p in ("encoder", "decoder") for k in (0, 1)},
    **{f"{p}.mid_block.attentions.0.": f"{p}.mid.attn_1." for p in ("encoder", "decoder")},
    **{f"{p}.conv_norm_out.": f"{p}.norm_out." for p in ("encoder", "decoder")},
    "": "",
}
VAE_LAYERS = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
