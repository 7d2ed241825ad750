"""The fast paths against the formula as it is published, written out in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from visfeedback.sampling.fabric import flux, sd3, unet
from visfeedback.sampling.fabric.processors import FabricProcessor
from visfeedback.sampling.fabric.weighting import Injection, References, extrapolate, references, weighted


def written_out(query: Tensor, key: Tensor, value: Tensor, extra: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """softmax, multiply the references' columns by w, divide each row by its sum. (B, N, H, D), float64."""
    rows = len(key)
    keys = torch.cat([key, *(k.expand(rows, -1, -1, -1) for k, _, _ in extra)], dim=1).double()
    values = torch.cat([value, *(v.expand(rows, -1, -1, -1) for _, v, _ in extra)], dim=1).double()
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), keys) * query.shape[-1] ** -0.5
    weights = torch.cat([torch.ones(key.shape[1]), *(torch.full((k.shape[1],), w) for k, _, w in extra)]).double()
    shares = scores.softmax(dim=-1) * weights
    shares = shares / shares.sum(dim=-1, keepdim=True)
    return torch.einsum("bhqk,bkhd->bqhd", shares, values)


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * 2 for shape in shapes]


@pytest.mark.parametrize("form", ["bias", "channel"])
@pytest.mark.parametrize("weights", [(0.3, 1.0), (1.0, 1.0), (1e-3, 2.5)])
def test_weighted_attention_is_the_formula(form: Any, weights: tuple[float, float]) -> None:
    query, key, value, k1, v1, k2, v2 = tensors((3, 7, 2, 16), *[(3, 9, 2, 16)] * 2, *[(1, 9, 2, 16)] * 2,
                                                *[(1, 4, 2, 16)] * 2)  # fmt: skip
    extra = references([(k1, v1), (k2, v2)], weights)
    expected = written_out(query, key, value, [(k1, v1, weights[0]), (k2, v2, weights[1])])
    assert (weighted(query, key, value, extra, form) - expected).abs().max() <= 1e-5


def test_half_precision_keeps_the_weight_in_the_channels() -> None:
    """Two bf16 parts of log w / scale hold 16 bits of it: the rest is what bf16 attention errs by anyway."""
    query, key, value, k1, v1 = tensors(*[(2, 9, 2, 16)] * 3, *[(1, 9, 2, 16)] * 2)
    half = [tensor.bfloat16() for tensor in (query, key, value, k1, v1)]
    extra = references([(half[3], half[4])], [0.3])
    exact = written_out(*(t.float() for t in half[:3]), [(half[3].float(), half[4].float(), 0.3)])  # pyright: ignore[reportArgumentType]
    errors = {form: (weighted(*half[:3], extra, form).float() - exact).abs().max() for form in ("bias", "channel")}  # pyright: ignore[reportArgumentType]
    assert max(errors.values()) <= 0.05


def test_a_reference_equal_to_the_image_changes_nothing() -> None:
    """Every own key twice: softmax gives each copy half, and the values are the same. Whatever the weight."""
    query, key, value = tensors((1, 7, 2, 16), *[(1, 9, 2, 16)] * 2)
    plain = weighted(query, key, value, None)
    for weight in (1.0, 0.2):
        assert torch.allclose(weighted(query, key, value, references([(key, value)], [weight])), plain, atol=1e-6)


def test_no_weight_is_no_reference() -> None:
    [key] = tensors((1, 4, 2, 8))
    assert references([(key, key)], [0.0]) is None
    made = references([(key, key), (key, key)], [0.0, 1.0])
    assert made is not None
    assert (len(made.keys), made.bias) == (1, None)


def test_extrapolation_has_no_effect_without_dislikes_and_never_lengthens() -> None:
    out, own, away = tensors(*[(2, 5, 2, 8)] * 3)
    assert torch.allclose(extrapolate(out, own, own, 2.0), out, atol=1e-6)
    longer = extrapolate(out, own, away, 5.0).norm(dim=-1) / out.norm(dim=-1)
    assert longer.max() <= 1 + 1e-5


def inject(processor: FabricProcessor, extra: References | None) -> None:
    """The second of two rows sees the references, the first does not."""
    processor.injections = (Injection(slice(0, 1), None), Injection(slice(1, 2), extra))


def blocks(pipe: Any, family: Any) -> dict[str, Any]:
    return family.layers(pipe.unet if family is unet else pipe.transformer)


def recorded(layer: Any, processor: FabricProcessor, *call: Any, **more: Any) -> tuple[Tensor, Tensor]:
    processor.recording = True
    layer.set_processor(processor)
    layer(*call, **more)
    assert processor.recorded is not None
    processor.recording = False
    return processor.recorded


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_unet_blocks(name: str, tiny: Any) -> None:
    """to_out of the written-out attention, for the row with references; the other row as diffusers computes it."""
    for layer in blocks(tiny(name), unet).values():
        states, reference = tensors((2, 16, layer.to_q.in_features), (1, 16, layer.to_q.in_features))
        original = layer.processor
        plain, processor = layer(states), unet.Processor(original)
        key, value = recorded(layer, processor, reference)
        inject(processor, references([(key, value)], [0.4]))
        out = layer(states)
        layer.set_processor(original)
        q, k, v = (part(states[1:]).unflatten(-1, (layer.heads, -1)) for part in (layer.to_q, layer.to_k, layer.to_v))
        expected = layer.to_out[0](written_out(q, k, v, [(key, value, 0.4)]).float().flatten(2))
        assert (out[1:] - expected).abs().max() <= 1e-5
        assert (out[:1] - plain[:1]).abs().max() <= 1e-5
        assert (out[1:] - plain[1:]).abs().max() > 1e-3


def test_mmdit_blocks(tiny: Any) -> None:
    """Joint attention: image rows see references, text rows are as diffusers computes them; and the image-only one."""
    found = blocks(tiny("sd3"), sd3)
    assert sorted(found) == ["transformer_blocks.0.attn", "transformer_blocks.0.attn2", "transformer_blocks.1.attn"]
    for name, layer in found.items():
        states, words, reference = tensors((2, 16, 64), (2, 5, 64), (1, 16, 64))
        joint = {} if name.endswith("attn2") else {"encoder_hidden_states": words}
        original = layer.processor
        plain, processor = layer(states, **joint), sd3.Processor(original)
        key, value = recorded(layer, processor, reference, **{k: v[:1] for k, v in joint.items()})
        inject(processor, references([(key, value)], [0.4]))
        out = layer(states, **joint)
        layer.set_processor(original)
        own = [states[1:], *([words[1:]] if joint else [])]
        q = layer.norm_q(layer.to_q(states[1:]).unflatten(-1, (layer.heads, -1)))
        keys = [layer.norm_k(layer.to_k(own[0]).unflatten(-1, (layer.heads, -1)))]
        values = [layer.to_v(own[0]).unflatten(-1, (layer.heads, -1))]
        if joint:
            keys.append(layer.norm_added_k(layer.add_k_proj(own[1]).unflatten(-1, (layer.heads, -1))))
            values.append(layer.add_v_proj(own[1]).unflatten(-1, (layer.heads, -1)))
        attended = written_out(q, torch.cat(keys, 1), torch.cat(values, 1), [(key, value, 0.4)])
        expected = layer.to_out[0](attended.float().flatten(2))
        image, plain_image = (out[0], plain[0]) if joint else (out, plain)
        assert (image[1:] - expected).abs().max() <= 1e-5
        assert (image[:1] - plain_image[:1]).abs().max() <= 1e-5
        if joint:
            assert (out[1] - plain[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("block", ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"])
def test_flux_blocks(block: str, tiny: Any) -> None:
    """Keys are turned after recording: at their own places that equals turning them while recording."""
    transformer = tiny("flux").transformer
    layer = transformer.get_submodule(block)
    ids = torch.zeros(5 + 16, 3)
    ids[5:, 1], ids[5:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    rotary = transformer.pos_embed(ids)
    image, words, reference = tensors((2, 16, 32), (2, 5, 32), (1, 16, 32))
    single = block.startswith("single")

    def call(image: Tensor, words: Tensor) -> Any:
        if single:
            return layer(torch.cat([words, image], 1), image_rotary_emb=rotary)
        return layer(image, words, image_rotary_emb=rotary)

    original = layer.processor
    plain, processor = call(image, words), flux.Processor(original)
    processor.image_tokens, processor.recording = 16, True
    layer.set_processor(processor)
    call(reference, words[:1])
    assert processor.recorded is not None
    key, value = processor.recorded
    processor.recording = False
    grid = flux._grid(4, 4, key)
    placed = flux._turn(key, transformer.pos_embed(grid))
    inject(processor, references([(placed, value)], [0.4]))
    out = call(image, words)
    layer.set_processor(original)
    names = (("to_q", "norm_q"), ("to_k", "norm_k"), ("to_v", None))
    states = torch.cat([words, image], 1)[1:] if single else image[1:]
    own = []
    for part, norm in names:
        made = getattr(layer, part)(states).unflatten(-1, (layer.heads, -1))
        made = getattr(layer, norm)(made) if norm else made
        if not single:
            added = getattr(layer, f"add_{part[-1]}_proj")(words[1:]).unflatten(-1, (layer.heads, -1))
            added = getattr(layer, f"norm_added_{part[-1]}")(added) if norm else added
            made = torch.cat([added, made], 1)
        own.append(flux._turn(made, rotary) if norm else made)
    attended = written_out(own[0][:, 5:], own[1], own[2], [(placed, value, 0.4)]).float().flatten(2)
    got, usual = (out[1:, 5:], plain[:1]) if single else (out[0][1:], plain[0][:1])
    expected = attended if single else layer.to_out[0](attended)
    assert (got - expected).abs().max() <= 1e-5
    assert ((out if single else out[0])[:1] - usual).abs().max() <= 1e-5
    text, plain_text = (out[:, :5], plain[:, :5]) if single else (out[1], plain[1])
    assert (text - plain_text).abs().max() <= 1e-5
