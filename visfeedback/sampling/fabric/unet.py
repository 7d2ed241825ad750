"""FABRIC on UNets: SD 1.x, 2.x, SDXL and what is built on them. References enter ``attn1`` of every transformer block.

May import: torch.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from visfeedback.plugins import InputError
from visfeedback.sampling.fabric.latents import encode
from visfeedback.sampling.fabric.processors import FabricProcessor, heads, refuse_mask
from visfeedback.sampling.fabric.seen import (
    Arguments,
    Seen,
    Text,
    device_of,
    halves,
    lora_scale,
    no_text,
    number,
    repeated,
)
from visfeedback.sampling.fabric.settings import FabricSettings

DENOISERS = ("UNet2DConditionModel",)
PART = "unet"
STANDS_IN_FOR = ("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "SlicedAttnProcessor")


class Processor(FabricProcessor):
    """Self-attention of a transformer block; the signature is that of ``AttnProcessor2_0``."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if self.idle:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        refuse_mask(attention_mask)
        query, key, value = (heads(part(hidden_states), attn.heads) for part in (attn.to_q, attn.to_k, attn.to_v))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        self.keep(key, value)
        out = self.attend(query, key, value).flatten(2).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor


def layers(denoiser: nn.Module) -> dict[str, Any]:
    found = {name: module for name, module in denoiser.named_modules() if name.endswith(".attn1")}
    return {
        name: module
        for name, module in found.items()
        if hasattr(module, "processor") and not getattr(module, "is_cross_attention", False)
    }


def see(pipe: Any, arguments: Arguments, settings: FabricSettings, memory: dict[str, Any]) -> Seen:
    rows, _, height, width = arguments["sample"].shape
    branches = halves(pipe, rows, settings)
    tokens = arguments["encoder_hidden_states"].shape[1]
    return Seen(rows, height, width, number(arguments["timestep"]), branches, len(branches) == 2, tokens)


def encode_text(pipe: Any, text: str, tokens: int) -> Text:
    """The empty text is what the pipeline itself takes for "no negative prompt": zeros in most SDXL models."""
    if pipe.text_encoder is None and getattr(pipe, "text_encoder_2", None) is None:
        raise no_text(pipe)
    answer = pipe.encode_prompt(
        prompt=text, device=device_of(pipe), num_images_per_prompt=1, do_classifier_free_guidance=not text
    )
    if len(answer) == 4:
        states, pooled = (answer[0], answer[2]) if text else (answer[1], answer[3])
        return {"encoder_hidden_states": states, "text_embeds": pooled}
    return {"encoder_hidden_states": answer[0]}


def own_text(arguments: Arguments, row: int) -> Text:
    text = {"encoder_hidden_states": arguments["encoder_hidden_states"][row : row + 1]}
    added = arguments.get("added_cond_kwargs") or {}
    return text | ({"text_embeds": added["text_embeds"][row : row + 1]} if "text_embeds" in added else {})


def reference_arguments(pipe: Any, arguments: Arguments, latents: Tensor, t: Tensor, text: Text) -> Arguments:
    """Residuals of ControlNets and adapters are the drawn image's own: references go without."""
    count, states = len(latents), text["encoder_hidden_states"]
    call: Arguments = {
        "sample": _with_mask(pipe, latents, arguments["sample"]),
        "timestep": t.expand(count),
        "encoder_hidden_states": repeated(states.to(latents), count),
        "cross_attention_kwargs": lora_scale(arguments.get("cross_attention_kwargs")),
        "return_dict": False,
    }
    for name in ("timestep_cond", "class_labels"):
        if arguments.get(name) is not None:
            call[name] = repeated(arguments[name][-1:], count)
    if arguments.get("added_cond_kwargs"):
        added = {k: repeated(v[-1:], count) for k, v in arguments["added_cond_kwargs"].items() if _per_row(v)}
        pooled = {"text_embeds": repeated(text["text_embeds"].to(latents), count)} if "text_embeds" in text else {}
        call["added_cond_kwargs"] = added | pooled
    return call


def place(denoiser: nn.Module, key: Tensor, size: tuple[int, int], seen: Seen, positions: str) -> Tensor:
    return key


def _per_row(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _with_mask(pipe: Any, latents: Tensor, sample: Tensor) -> Tensor:
    """An inpainting UNet also wants a mask and the masked picture: here all of it is to be painted."""
    count, channels, height, width = latents.shape
    if sample.shape[1] == channels:
        return latents
    if sample.shape[1] != 2 * channels + 1:
        raise InputError(
            f"{type(pipe).__name__} draws with {sample.shape[1]} channels; fabric knows {channels}, and "
            f"{2 * channels + 1} for inpainting"
        )
    side = pipe.vae_scale_factor
    grey = encode(pipe, Image.new("RGB", (width * side, height * side), (127, 127, 127)), height * side, width * side)
    return torch.cat([latents, latents.new_ones(count, 1, height, width), repeated(grey.to(latents), count)], dim=1)
