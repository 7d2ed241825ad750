"""The Stable Diffusion backbone against the pipeline it wraps, and its adapters in stock diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from PIL import Image

from visfeedback.backbones.load import load
from visfeedback.backbones.sd import SD
from visfeedback.plugins import InputError

T = torch.tensor([0.5, 1.0])


@pytest.fixture
def sd(tiny_sd: Path) -> SD:
    return load(str(tiny_sd), device="cpu")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perturb(sd: SD, seed: int = 1) -> None:
    """Give B, which starts at 0, values that change the images."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sd.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2, generator=generator)


def picture(pipe: Any) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(5)
    return np.array(pipe("a red dog", generator=generator, num_inference_steps=3).images[0]).astype(int)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_predict_is_the_pipelines_unet_call(make_tiny_sd: Callable[..., Path], kind: str) -> None:
    """t = .5 and 1 of T = 1000 are the discrete steps 499 and 999; bit for bit."""
    sd = load(str(make_tiny_sd(prediction_type=kind)), device="cpu")
    x, condition = noise(2, 4, 8, 8), sd.encode_text(["a red dog", ""])
    expected = sd.pipe.unet(x, torch.tensor([499, 999]), encoder_hidden_states=condition.tokens).sample
    assert torch.equal(sd.predict(x, T, condition), expected)
    assert sd.process.prediction_type == kind
    assert sd.resolution == 16
    assert sd.latent_shape == (4, 8, 8), "4 channels, 16 pixels at 2 a latent"
    assert sd.encoders == (sd.pipe.vae, sd.pipe.text_encoder) and not sd.adapts_text


def test_the_first_step_serves_time_zero(sd: SD) -> None:
    x, condition = noise(1, 4, 8, 8), sd.encode_text([""])
    expected = sd.pipe.unet(x, torch.tensor([0]), encoder_hidden_states=condition.tokens).sample
    assert torch.equal(sd.predict(x, torch.zeros(1), condition), expected)


def test_text_is_encoded_as_the_pipeline_does(sd: SD) -> None:
    """With guidance the pipeline encodes the prompt and the empty text: (1, 16, 32) each."""
    prompt, empty = sd.pipe.encode_prompt("a red dog", "cpu", 1, True)
    assert torch.equal(sd.encode_text(["a red dog"]).tokens, prompt)
    assert torch.equal(sd.encode_text([""]).tokens, empty)


def test_latents_are_those_of_the_vae(sd: SD) -> None:
    """Mean and std of `latent_dist` times 0.18215 for pixels in [-1, 1]; decode is what the pipeline shows."""
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = sd.encode(pixels)
    dist = sd.pipe.vae.encode(2 * pixels - 1).latent_dist
    torch.testing.assert_close(mean, dist.mean * 0.18215)
    torch.testing.assert_close(std, dist.std * 0.18215)
    shown = sd.pipe.image_processor.postprocess(sd.pipe.vae.decode(mean / 0.18215).sample, output_type="pt")
    torch.testing.assert_close(sd.decode(mean), shown)


def test_a_tiny_autoencoder_has_no_spread(sd: SD) -> None:
    """AutoencoderTiny gives latents without a distribution: std 0. Scaling factor 1."""
    sd.pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    pixels = torch.rand(1, 3, 16, 16)
    mean, std = sd.encode(pixels)
    torch.testing.assert_close(mean, sd.pipe.vae.encode(2 * pixels - 1).latents)
    assert not std.any()
    assert sd.decode(mean).shape == pixels.shape


def test_without_a_lora_policy_and_reference_are_the_same(sd: SD) -> None:
    x, condition = noise(2, 4, 8, 8), sd.encode_text(["a", "b"])
    policy = sd.predict(x, T, condition)
    with sd.weights("reference"):
        assert torch.equal(sd.predict(x, T, condition), policy)
    assert list(sd.parameters()) == []


def test_a_fresh_lora_changes_nothing_bit_for_bit(sd: SD) -> None:
    x, condition = noise(2, 4, 8, 8), sd.encode_text(["a", "b"])
    before = sd.predict(x, T, condition)
    sd.add_lora(rank=4)
    assert torch.equal(sd.predict(x, T, condition), before)
    with sd.weights("reference"):
        assert torch.equal(sd.predict(x, T, condition), before)


def test_a_fresh_lora_depends_on_its_seed_alone(tiny_sd: Path) -> None:
    state = torch.get_rng_state()
    made = []
    for seed in (3, 3, 4):
        sd = load(str(tiny_sd), device="cpu")
        sd.add_lora(rank=2, seed=seed)
        made.append(next(sd.parameters()))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_lora_is_trainable_and_gets_gradients(sd: SD) -> None:
    sd.add_lora(rank=2)
    networks = (sd.pipe.unet, sd.pipe.vae, sd.pipe.text_encoder)
    trainable = {id(p) for network in networks for p in network.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in sd.parameters()}
    condition = sd.encode_text(["a", "b"])
    loss = sd.predict(noise(2, 4, 8, 8), T, condition).square().mean()
    with sd.weights("reference"), torch.no_grad():  # looking at the reference must not cut the policy's graph
        sd.predict(noise(2, 4, 8, 8), T, condition)
    loss.backward()
    assert all(p.grad is not None for p in sd.parameters())


def test_weights_come_back_after_an_exception_and_nest(sd: SD) -> None:
    sd.add_lora(rank=2)
    perturb(sd)
    x, condition = noise(2, 4, 8, 8), sd.encode_text(["a", "b"])
    policy = sd.predict(x, T, condition)
    with pytest.raises(KeyError), sd.weights("reference"), sd.weights("policy"):
        assert torch.equal(sd.predict(x, T, condition), policy)
        raise KeyError
    assert torch.equal(sd.predict(x, T, condition), policy)
    assert all(p.requires_grad for p in sd.parameters())


def test_old_weights_are_a_frozen_copy(sd: SD) -> None:
    sd.add_lora(rank=2, alpha=3.0)
    perturb(sd)
    x, condition = noise(2, 4, 8, 8), sd.encode_text(["a", "b"])
    with pytest.raises(ValueError, match="no old weights"), sd.weights("old"):
        pass
    sd.copy_weights("policy", "old")
    before = sd.predict(x, T, condition)
    perturb(sd, seed=2)
    with sd.weights("old"):
        assert torch.equal(sd.predict(x, T, condition), before)
        assert not any(p.requires_grad for p in sd.pipe.unet.parameters())
    assert not torch.equal(sd.predict(x, T, condition), before)
    sd.copy_weights("old", "policy")
    assert torch.equal(sd.predict(x, T, condition), before)
    with pytest.raises(ValueError, match="reference"):
        sd.copy_weights("policy", "reference")


def test_the_reference_can_be_where_a_second_training_started(sd: SD, tiny_sd: Path, tmp_path: Path) -> None:
    """Loaded with an adapter and frozen: policy = reference bit for bit, both unlike the bare network; then they part.

    Freezing draws no random numbers, and the reference goes by the name of the adapter.
    """
    sd.add_lora(rank=2)
    perturb(sd)
    sd.save_adapter(tmp_path)
    second = load(str(tiny_sd), adapter=str(tmp_path), device="cpu")
    x, condition = noise(2, 4, 8, 8), sd.encode_text(["a", "b"])
    with second.weights("reference"):
        bare = second.predict(x, T, condition)
    state = torch.get_rng_state()
    second.freeze_reference()
    assert torch.equal(torch.get_rng_state(), state)
    start = second.predict(x, T, condition)
    assert not torch.equal(start, bare)
    perturb(second, seed=7)
    with second.weights("reference"):
        assert torch.equal(second.predict(x, T, condition), start)
        assert second.adapter == str(tmp_path)
    assert not torch.equal(second.predict(x, T, condition), start)
    assert sum(p.requires_grad for p in second.pipe.unet.parameters()) == len(list(second.parameters()))
    with pytest.raises(ValueError, match="no LoRA yet"):
        load(str(tiny_sd), device="cpu").freeze_reference()


def test_a_loaded_adapter_brings_no_dropout(sd: SD, tiny_sd: Path, tmp_path: Path) -> None:
    """Trained with dropout .5: loaded, it acts whole, in the UNet and in the text encoder."""
    from peft import LoraConfig

    sd.add_lora(rank=2, dropout=0.5)
    perturb(sd)
    text = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
    sd.pipe.text_encoder.add_adapter(text, adapter_name="default")
    sd.save_adapter(tmp_path)
    loaded, x = load(str(tiny_sd), adapter=str(tmp_path), device="cpu"), noise(2, 4, 8, 8)
    assert loaded.adapts_text
    condition = loaded.encode_text(["a", "b"])
    assert torch.equal(loaded.encode_text(["a", "b"]).tokens, condition.tokens)
    assert torch.equal(loaded.predict(x, T, condition), loaded.predict(x, T, condition))


def test_frozen_copies_have_no_dropout_and_the_policy_has_its_own(sd: SD) -> None:
    """With dropout the policy is another network in every call; what it was, and where it started, is one network."""
    with pytest.raises(ValueError, match="no LoRA yet"):
        sd.set_dropout(0.5)
    sd.add_lora(rank=2, dropout=0.5)
    perturb(sd)
    sd.freeze_reference()
    sd.copy_weights("policy", "old")
    x, condition = noise(2, 4, 8, 8), sd.encode_text(["a", "b"])

    def same() -> bool:
        return torch.equal(sd.predict(x, T, condition), sd.predict(x, T, condition))

    for which in ("reference", "old"):
        with sd.weights(which):
            assert same()
    assert not same()
    sd.set_dropout(0.0)
    assert same()
    sd.set_dropout(0.5)
    assert not same()
    assert sd.pipe.unet.peft_config["default"].lora_dropout == 0.5


def test_a_saved_adapter_gives_the_same_image_in_stock_diffusers(sd: SD, tiny_sd: Path, tmp_path: Path) -> None:
    """alpha 6 at rank 4 (scale 1.5) must survive; without the metadata stock diffusers would assume 1."""
    base = picture(sd.pipe)
    sd.add_lora(rank=4, alpha=6)
    perturb(sd)
    sd.save_adapter(tmp_path)
    stock = StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=torch.float32, safety_checker=None)
    stock.load_lora_weights(tmp_path)
    assert np.array_equal(picture(stock), picture(sd.pipe))
    assert np.abs(picture(stock) - base).max() > 3


def test_adapters_of_other_trainers_load(sd: SD, tiny_sd: Path, tmp_path: Path) -> None:
    """kohya's names (lora_unet_..., lora_down / lora_up) and `alpha`: 6 / 4 as in ours, the same image."""
    from safetensors.torch import save_file

    sd.add_lora(rank=4, alpha=6, targets=("to_q", "to_v"))
    perturb(sd)
    state = {}
    for name, value in sd.named_parameters():
        layer = "lora_unet_" + name.partition(".lora_")[0].replace(".", "_")
        state[f"{layer}.lora_{'down' if 'lora_A' in name else 'up'}.weight"] = value.detach().clone()
        state[f"{layer}.alpha"] = torch.tensor(6.0)
    save_file(state, tmp_path / "kohya.safetensors")
    other = load(str(tiny_sd), adapter=str(tmp_path / "kohya.safetensors"), device="cpu")
    assert np.array_equal(picture(other.pipe), picture(sd.pipe))


def test_lora_weights_of_the_text_encoder_go_along(sd: SD, tiny_sd: Path, tmp_path: Path) -> None:
    """Loaded, saved and loaded again they give the same image; the reference is without them; they are not trained."""
    from peft import LoraConfig, get_peft_model_state_dict

    text = sd.pipe.text_encoder
    plain = sd.encode_text(["a"]).tokens
    sd.add_lora(rank=2)
    text.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), adapter_name="default")
    sd.save_adapter(tmp_path / "one")
    assert len(get_peft_model_state_dict(text, adapter_name="default")) == 4
    one = load(str(tiny_sd), adapter=str(tmp_path / "one"), device="cpu")
    one.save_adapter(tmp_path / "two")
    stock = StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=torch.float32, safety_checker=None)
    stock.load_lora_weights(tmp_path / "two")
    assert np.array_equal(picture(stock), picture(one.pipe))
    assert not torch.equal(one.encode_text(["a"]).tokens, plain)
    with one.weights("reference"):
        assert torch.equal(one.encode_text(["a"]).tokens, plain)
    assert not any(p.requires_grad for p in one.pipe.text_encoder.parameters())


def test_an_adapter_is_a_start(sd: SD, tiny_sd: Path, tmp_path: Path) -> None:
    """Saved, loaded and saved again: the same weights, trainable, and the record of where they came from."""
    sd.add_lora(rank=4, alpha=6, targets=("to_q", "to_v"))
    perturb(sd)
    sd.save_adapter(tmp_path / "one")
    again = load(str(tiny_sd), device="cpu")
    again.load_adapter(tmp_path / "one")
    again.save_adapter(tmp_path / "two")
    one, two = (
        StableDiffusionPipeline.lora_state_dict(tmp_path / n, return_lora_metadata=True) for n in ("one", "two")
    )
    assert one[0].keys() == two[0].keys()
    assert all(torch.equal(one[0][key], two[0][key]) for key in one[0])
    assert one[2] == two[2]
    assert all(p.requires_grad and p.dtype == torch.float32 for p in again.parameters())
    assert again.adapter == str(tmp_path / "one")
    with again.weights("reference"):
        assert again.adapter == ""
    with pytest.raises(InputError, match="already"):
        again.add_lora()


def test_an_average_can_be_saved_instead(sd: SD, tiny_sd: Path, tmp_path: Path) -> None:
    sd.add_lora(rank=2)
    sd.save_adapter(tmp_path, state={n: torch.full_like(p, 0.5) for n, p in sd.named_parameters()}, dtype=torch.float16)
    other = load(str(tiny_sd), adapter=str(tmp_path), device="cpu")
    assert all((p == 0.5).all() for p in other.parameters())


def test_half_precision_networks_keep_a_float32_lora(tiny_sd: Path) -> None:
    sd = load(str(tiny_sd), dtype="bf16", device="cpu")
    sd.add_lora(rank=2)
    assert sd.dtype == torch.bfloat16
    assert {p.dtype for p in sd.parameters()} == {torch.float32}
    assert sd.predict(noise(2, 4, 8, 8), T, sd.encode_text(["a", "b"])).dtype == torch.bfloat16


def test_adapters_that_do_not_fit(sd: SD, make_tiny_sd: Callable[..., Path], tmp_path: Path) -> None:
    """Another width, a torn file, a picture, an empty folder, nothing at all: one line each, and nothing is loaded."""
    wide = load(str(make_tiny_sd(width=32)), device="cpu")
    wide.add_lora(rank=2)
    file = wide.save_adapter(tmp_path / "wide")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(file.read_bytes()[:1000])
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "wide": "of another model",
        "torn.safetensors": "damaged",
        "image.png": "damaged",
        "empty": "expected one pytorch_lora_weights.safetensors",
        "nothing": "no such file",
        "me/nothing": "neither a folder nor a file nor in the hub cache",
    }.items():
        target = name if "/" in name else str(tmp_path / name)
        with pytest.raises(InputError, match=message) as caught:
            sd.load_adapter(target)
        assert "\n" not in str(caught.value)
    assert list(sd.parameters()) == []


def test_damaged_adapters_are_refused(sd: SD, tiny_sd: Path, tmp_path: Path) -> None:
    """An A of another rank than its B, a layer without its B, a NaN: each would fail inside peft, or draw black."""
    from safetensors.torch import load_file, save_file

    whole = load(str(tiny_sd), device="cpu")
    whole.add_lora(rank=2)
    state = load_file(whole.save_adapter(tmp_path / "whole"))
    first = next(key for key in state if "lora_A" in key)
    broken = {
        "the ranks of": state | {first: torch.zeros(3, state[first].shape[1])},
        "has no lora_B": {key: value for key, value in state.items() if key != first.replace("lora_A", "lora_B")},
        "holds NaN": state | {first: torch.full_like(state[first], torch.nan)},
    }
    for message, weights in broken.items():
        save_file(weights, tmp_path / "x.safetensors")
        with pytest.raises(InputError, match=message) as caught:
            sd.load_adapter(tmp_path / "x.safetensors")
        assert "\n" not in str(caught.value)
    assert list(sd.parameters()) == []


def test_an_adapter_with_unknown_layers_is_refused(sd: SD, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"unet.nowhere.to_q.lora_A.weight": torch.zeros(2, 16)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no layer nowhere"):
        sd.load_adapter(tmp_path / "a.safetensors")
    save_file({"transformer.to_q.lora_A.weight": torch.zeros(2, 16)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="another model"):
        sd.load_adapter(tmp_path / "b.safetensors")


def test_lora_targets_must_exist(sd: SD) -> None:
    with pytest.raises(InputError, match="no LoRA on nowhere"):
        sd.add_lora(targets=["nowhere"])
