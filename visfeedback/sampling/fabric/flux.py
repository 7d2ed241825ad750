"""FABRIC on FLUX: image queries see references, text queries do not; in double and in single blocks.

Keys are recorded after ``norm_k`` and before the rotary embedding, and turned to their place when they are used.
With true CFG the pipeline calls the network twice for each step, the positive branch first. May import: torch.
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
    Branch,
    Seen,
    Text,
    device_of,
    lora_scale,
    no_text,
    number,
    repeated,
)
from visfeedback.sampling.fabric.settings import FabricSettings

DENOISERS = ("FluxTransformer2DModel",)
PART = "transformer"
STANDS_IN_FOR = ("FluxAttnProcessor", "FluxAttnProcessor2_0")


class Processor(FabricProcessor):
    """The signature is that of ``FluxAttnProcessor``; the order of tokens is text, then image."""

    image_tokens = 0
    """of the pass at hand: a single block gets text and image joined"""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.idle:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        refuse_mask(attention_mask)
        query, key, value = _project(attn, hidden_states, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        self.keep(key[:, -self.image_tokens :], value[:, -self.image_tokens :])
        if encoder_hidden_states is not None:
            parts = ("add_q_proj", "add_k_proj", "add_v_proj")
            text = _project(attn, encoder_hidden_states, parts, ("norm_added_q", "norm_added_k"))
            query, key, value = (torch.cat(pair, dim=1) for pair in zip(text, (query, key, value), strict=True))
        if image_rotary_emb is not None:
            query, key = _turn(query, image_rotary_emb), _turn(key, image_rotary_emb)
        words = query.shape[1] - self.image_tokens
        text_out = self.attend_own(query[:, :words], key, value).flatten(2)
        image_out = self.attend(query[:, words:], key, value).flatten(2)
        if encoder_hidden_states is None:
            return torch.cat([text_out, image_out], dim=1)
        return attn.to_out[1](attn.to_out[0](image_out)), attn.to_add_out(text_out)


def _project(attn: Any, states: Tensor, parts: tuple[str, ...], norms: tuple[str, str]) -> list[Tensor]:
    """Queries, keys and values (B, N, H, D), the first two normalised."""
    made = [heads(getattr(attn, part)(states), attn.heads) for part in parts]
    for index, norm in enumerate(norms):
        made[index] = getattr(attn, norm)(made[index])
    return made


def _turn(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    from diffusers.models.embeddings import apply_rotary_emb

    return apply_rotary_emb(states, rotary, sequence_dim=1)  # pyright: ignore[reportArgumentType, reportReturnType]


def layers(denoiser: nn.Module) -> dict[str, Any]:
    return {
        name: module
        for name, module in denoiser.named_modules()
        if name.endswith(".attn") and hasattr(module, "processor")
    }


def see(pipe: Any, arguments: Arguments, settings: FabricSettings, memory: dict[str, Any]) -> Seen:
    rows, t = len(arguments["hidden_states"]), number(arguments["timestep"]) * 1000
    branch = _branch(pipe.scheduler, t, settings, memory)
    ids = _plain(arguments["img_ids"])
    own = ids[ids[:, 0] == 0]  # Kontext's picture lies on a plane of its own
    height, width = (2 * (int(own[:, axis].max()) + 1) for axis in (1, 2))
    tokens = arguments["encoder_hidden_states"].shape[1]
    return Seen(rows, height, width, t, ((branch, slice(0, rows)),), memory["negative"], tokens)


def _branch(scheduler: Any, t: float, settings: FabricSettings, memory: dict[str, Any]) -> Branch:
    """The second call without a step of the scheduler in between is the negative one. Keeps ``memory`` up to date."""
    if settings.branches == "positive-only":
        memory["negative"] = False
        return "positive"
    now, last = (scheduler.timesteps, getattr(scheduler, "_step_index", None), t), memory.get("last")
    again = last is not None and last[0] is now[0] and last[1:] == now[1:] and memory["calls"] == 1
    if again:
        memory.update(calls=2, negative=True)
    else:
        new_run = last is None or last[0] is not now[0]
        memory.update(calls=1, last=now, negative=None if new_run else bool(memory["negative"]))
    first: Branch = "negative" if settings.branches == "negative-first" else "positive"
    second: Branch = "positive" if first == "negative" else "negative"
    return second if again else first


def encode_text(pipe: Any, text: str, tokens: int) -> Text:
    if pipe.text_encoder is None or pipe.text_encoder_2 is None:
        raise no_text(pipe)
    states, pooled, _ = pipe.encode_prompt(
        prompt=text, prompt_2=None, device=device_of(pipe), max_sequence_length=tokens
    )
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def own_text(arguments: Arguments, row: int) -> Text:
    return {name: arguments[name][row : row + 1] for name in ("encoder_hidden_states", "pooled_projections")}


def reference_arguments(pipe: Any, arguments: Arguments, latents: Tensor, t: Tensor, text: Text) -> Arguments:
    count, _, height, width = latents.shape
    packed = _with_mask(pipe, latents, arguments["hidden_states"].shape[-1])
    states = text["encoder_hidden_states"].to(latents)
    guidance = arguments.get("guidance")
    return {
        "hidden_states": packed,
        "timestep": t.to(latents.dtype).expand(count) / 1000,
        "encoder_hidden_states": repeated(states, count),
        "pooled_projections": repeated(text["pooled_projections"].to(latents), count),
        "img_ids": _grid(height // 2, width // 2, arguments["img_ids"]),
        "txt_ids": arguments["txt_ids"].new_zeros(states.shape[1], arguments["txt_ids"].shape[-1]),
        "guidance": None if guidance is None else repeated(guidance[-1:], count),
        "joint_attention_kwargs": lora_scale(arguments.get("joint_attention_kwargs")),
        "return_dict": False,
    }


def _with_mask(pipe: Any, latents: Tensor, channels: int) -> Tensor:
    """Packed latents; FLUX Fill also wants the masked picture and a mask: here all of it is to be painted."""
    count, depth, height, width = latents.shape
    packed = pipe._pack_latents(latents, count, depth, height, width)
    own, side = packed.shape[-1], pipe.vae_scale_factor
    if channels == own:
        return packed
    if channels != 2 * own + 4 * side**2:
        raise InputError(
            f"{type(pipe).__name__} draws with {channels} channels; fabric knows {own}: plain, image-to-image, "
            f"inpainting, ControlNet and Kontext pipelines, and {2 * own + 4 * side**2}: Fill"
        )
    grey = Image.new("RGB", (width * side, height * side), (127, 127, 127))
    hidden = encode(pipe, grey, height * side, width * side).to(latents)
    masked = repeated(pipe._pack_latents(hidden, 1, depth, height, width), count)
    return torch.cat([packed, masked, packed.new_ones(*packed.shape[:2], 4 * side**2)], dim=-1)


def place(denoiser: Any, key: Tensor, size: tuple[int, int], seen: Seen, positions: str) -> Tensor:
    """Turned to the drawn image's own grid, which a smaller reference spans with wider gaps; or to a plane beside."""
    rows, columns = size[0] // 2, size[1] // 2
    ids = _grid(rows, columns, key.float())
    ids[:, 1] = (ids[:, 1] + 0.5) * (seen.height // 2 / rows) - 0.5
    ids[:, 2] = (ids[:, 2] + 0.5) * (seen.width // 2 / columns) - 0.5
    ids[:, 0] = float(positions == "apart")
    return _turn(key, denoiser.pos_embed(ids))


def _plain(ids: Tensor) -> Tensor:
    """Older calls give the places for each row of the batch."""
    return ids[0] if ids.ndim == 3 else ids


def _grid(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows * columns, 3): plane 0, row, column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).to(like.device, like.dtype)
