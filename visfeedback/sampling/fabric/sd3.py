"""FABRIC on SD 3 and 3.5: image queries see references, text queries do not.

References enter the joint attention of each block and the image-only ``attn2`` of SD 3.5 medium. Only the image tokens'
keys and values are recorded, after ``norm_k``. May import: torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from visfeedback.sampling.fabric.processors import FabricProcessor, heads, refuse_mask
from visfeedback.sampling.fabric.seen import (
    Arguments,
    Branch,
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

DENOISERS = ("SD3Transformer2DModel",)
PART = "transformer"
STANDS_IN_FOR = ("JointAttnProcessor2_0", "XFormersJointAttnProcessor")


class Processor(FabricProcessor):
    """The signature is that of ``JointAttnProcessor2_0``; the order of tokens is image, then text."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.idle:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        refuse_mask(attention_mask)
        query, key, value = _project(attn, hidden_states, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        self.keep(key, value)
        if encoder_hidden_states is None:
            return _out(attn, self.attend(query, key, value))
        parts = ("add_q_proj", "add_k_proj", "add_v_proj")
        text = _project(attn, encoder_hidden_states, parts, ("norm_added_q", "norm_added_k"))
        key, value = torch.cat([key, text[1]], dim=1), torch.cat([value, text[2]], dim=1)
        image = _out(attn, self.attend(query, key, value))
        words = self.attend_own(text[0], key, value).flatten(2)
        return image, words if attn.context_pre_only else attn.to_add_out(words)


def _project(attn: Any, states: Tensor, parts: tuple[str, ...], norms: tuple[str, str]) -> list[Tensor]:
    """Queries, keys and values (B, N, H, D), the first two normalised."""
    made = [heads(getattr(attn, part)(states), attn.heads) for part in parts]
    for index, norm in enumerate(norms):
        if getattr(attn, norm) is not None:
            made[index] = getattr(attn, norm)(made[index])
    return made


def _out(attn: Any, states: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](states.flatten(2)))


def layers(denoiser: nn.Module) -> dict[str, Any]:
    return {
        name: module
        for name, module in denoiser.named_modules()
        if name.rpartition(".")[2] in ("attn", "attn2") and hasattr(module, "processor")
    }


def see(pipe: Any, arguments: Arguments, settings: FabricSettings, memory: dict[str, Any]) -> Seen:
    rows, _, height, width = arguments["hidden_states"].shape
    skipping = arguments.get("skip_layers") is not None  # an extra pass of the positive branch alone
    alone: tuple[tuple[Branch, slice], ...] = (("positive", slice(0, rows)),)
    branches = alone if skipping else halves(pipe, rows, settings)
    tokens = arguments["encoder_hidden_states"].shape[1]
    negative = skipping or len(branches) == 2
    return Seen(rows, height, width, number(arguments["timestep"]), branches, negative, tokens)


def encode_text(pipe: Any, text: str, tokens: int) -> Text:
    if pipe.text_encoder is None and pipe.text_encoder_3 is None:
        raise no_text(pipe)
    states, _, pooled, _ = pipe.encode_prompt(
        prompt=text, prompt_2=None, prompt_3=None, device=device_of(pipe), do_classifier_free_guidance=False,
        max_sequence_length=max(1, tokens - pipe.tokenizer_max_length),
    )  # fmt: skip
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def own_text(arguments: Arguments, row: int) -> Text:
    return {name: arguments[name][row : row + 1] for name in ("encoder_hidden_states", "pooled_projections")}


def reference_arguments(pipe: Any, arguments: Arguments, latents: Tensor, t: Tensor, text: Text) -> Arguments:
    count = len(latents)
    return {
        "hidden_states": latents,
        "timestep": t.expand(count),
        **{name: repeated(value.to(latents), count) for name, value in text.items()},
        "joint_attention_kwargs": lora_scale(arguments.get("joint_attention_kwargs")),
        "return_dict": False,
    }


def place(denoiser: nn.Module, key: Tensor, size: tuple[int, int], seen: Seen, positions: str) -> Tensor:
    return key
