"""For bench_fabric.py: FABRIC as the community port computes it, on today's attention processors.

References pass through the UNet at every step; the inputs of every attn1 are stored, repeated for each row of the
batch, projected again with the row's own tokens, and the attention is written out: softmax, columns of references
multiplied by the weight, rows divided by their sums. The port's two further attentions a layer, whose results it throws
away, are left out: they would make the comparison easier to win.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from visfeedback.sampling.fabric.latents import encode, noise_of, noised
from visfeedback.sampling.fabric.references import Reference, read_references


class PlainAttention:
    """On one attn1: stores the references' inputs, or attends with them beside the row's own."""

    def __init__(self, original: Any, state: dict[str, Any]) -> None:
        self.original, self.state, self.stored = original, state, None

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any,
                 **kwargs: Any) -> Tensor:  # fmt: skip
        if self.state["mode"] == "store":
            self.stored = hidden_states
        if self.state["mode"] != "inject":
            return self.original(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        likes = self.state["likes"]
        negative, positive = hidden_states.chunk(2)
        halves = ((negative, self.stored[likes:], self.state["negative"]),
                  (positive, self.stored[:likes], self.state["positive"]))  # fmt: skip
        out = torch.cat([self.attend(attn, own, extra, weight) for own, extra, weight in halves])
        return attn.to_out[1](attn.to_out[0](out))

    def attend(self, attn: Any, own: Tensor, extra: Tensor, weight: float) -> Tensor:
        rows, tokens, _ = own.shape
        flat = extra.reshape(1, -1, extra.shape[-1]).expand(rows, -1, -1)
        context = torch.cat([own, flat], dim=1)
        query, key, value = attn.to_q(own), attn.to_k(context), attn.to_v(context)
        query, key, value = (attn.head_to_batch_dim(part) for part in (query, key, value))
        shares = torch.baddbmm(query.new_zeros(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=attn.scale)
        shares = shares.softmax(dim=-1)
        columns = torch.cat([shares.new_ones(tokens), shares.new_full((flat.shape[1],), weight)])
        shares = shares * columns
        shares = shares / shares.sum(dim=-1, keepdim=True)
        return attn.batch_to_head_dim(torch.bmm(shares, value))


@contextmanager
def plain_fabric(
    pipe: Any, liked: Any, disliked: Any, strength: float, dislike_scale: float, seed: int = 0
) -> Iterator[None]:
    """Inside the block a guided call of the pipeline follows the images at every step."""
    refs: list[Reference] = read_references([*liked, *disliked])
    unet = pipe.unet
    state: dict[str, Any] = {"mode": "off", "likes": len(liked), "positive": strength,
                             "negative": strength * dislike_scale}  # fmt: skip
    layers = [module for name, module in unet.named_modules() if name.endswith(".attn1")]
    originals = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(PlainAttention(layer.processor, state))
    text = pipe.encode_prompt("", pipe.device, 1, False)[0]
    latents: list[Tensor] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if state["mode"] == "store" or not refs:
            return
        sample, t = args[0], args[1]
        if not latents:
            side = pipe.vae_scale_factor
            height, width = sample.shape[-2] * side, sample.shape[-1] * side
            latents.extend(encode(pipe, ref.image, height, width) for ref in refs)
        clean = torch.cat(latents)
        noise = torch.cat([noise_of(ref.id, seed, float(t), tuple(clean.shape[1:])) for ref in refs])
        noisy = noised(pipe.scheduler, clean, noise, float(t)).to(sample)
        state["mode"] = "store"
        unet(noisy, t, encoder_hidden_states=text.expand(len(refs), -1, -1).to(sample), return_dict=False)
        state["mode"] = "inject"

    hook = unet.register_forward_pre_hook(before, with_kwargs=True)
    try:
        with torch.no_grad():
            yield
    finally:
        hook.remove()
        for layer, original in zip(layers, originals, strict=True):
            layer.set_processor(original)
