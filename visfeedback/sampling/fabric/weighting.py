"""Attention to references with a weight, by fast kernels, equal to the published formula.

Published: P = softmax(q k^T / sqrt D) over own and reference keys, columns of references multiplied by w, rows
normalised again. Since w exp(s) = exp(s + log w), this is attention with log w added to the references' scores:

- ``bias``: as an additive mask, which PyTorch's kernels take;
- ``channel``: as two more channels of queries (1, 1) and keys (log w in two parts, so that 16-bit numbers keep it),
  for kernels that take no mask (flash, sage) or only some layouts of it (xformers). Exact with any kernel.

Shapes are those of diffusers' dispatcher: (B, N, H, D). May import: torch, diffusers' attention dispatcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = ("native", "_native_efficient", "_native_math", "_native_cudnn", "_native_npu", "_native_xla")
"""Back ends of diffusers' dispatcher that take an additive mask."""


@dataclass(frozen=True)
class References:
    """Keys and values of some references at one layer."""

    keys: tuple[Tensor, ...]
    """each (1, M, H, D)"""
    values: tuple[Tensor, ...]
    bias: Tensor | None
    """(sum of M,) float32, log weights; None = all weights are 1"""


@dataclass(frozen=True)
class Injection:
    """What some rows of the batch attend to beside themselves."""

    rows: slice
    toward: References | None
    away: References | None = None
    push: float = 0.0


def references(kept: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> References | None:
    """Keys and values (1, M, H, D) of one layer with their weights; a weight of 0 leaves its reference out."""
    chosen = [(k, v, w) for (k, v), w in zip(kept, weights, strict=True) if w > 0]
    if not chosen:
        return None
    bias = None
    if any(w != 1 for *_, w in chosen):
        device = chosen[0][0].device
        parts = [torch.full((k.shape[1],), w, dtype=torch.float64).log().float() for k, _, w in chosen]
        bias = torch.cat(parts).to(device)
    return References(tuple(k for k, *_ in chosen), tuple(v for _, v, _ in chosen), bias)


def attend(query: Tensor, key: Tensor, value: Tensor, injections: Sequence[Injection], **route: Any) -> Tensor:
    """(B, Nq, H, D): every row attends to ``key`` and ``value`` (B, N, H, D) and to its injection's references.

    ``injections`` cover all rows in order; ``route`` is the dispatcher's ``backend``.
    """
    return torch.cat([_branch(query[i.rows], key[i.rows], value[i.rows], i, **route) for i in injections])


def _branch(query: Tensor, key: Tensor, value: Tensor, injection: Injection, **route: Any) -> Tensor:
    out = weighted(query, key, value, injection.toward, **route)
    if injection.away is None:
        return out
    own = out if injection.toward is None else weighted(query, key, value, None, **route)
    away = weighted(query, key, value, injection.away, **route)
    return extrapolate(out, own, away, injection.push)


def extrapolate(out: Tensor, own: Tensor, away: Tensor, push: float) -> Tensor:
    """``out + push * (own - away)``, no vector longer than it was. Without dislikes (away = own) nothing changes."""
    pushed = out + push * (own - away)
    longest, length = out.norm(dim=-1, keepdim=True), pushed.norm(dim=-1, keepdim=True)
    return pushed * (longest / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp(max=1)


def weighted(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extra: References | None,
    form: Literal["auto", "bias", "channel"] = "auto",
    **route: Any,
) -> Tensor:
    """Attention to own tokens and weighted references; ``form`` auto takes the bias where the back end takes masks."""
    if extra is None:
        return _dispatch(query, key, value, **route)
    rows = len(key)
    keys = torch.cat([key, *(k.expand(rows, -1, -1, -1).to(key.dtype) for k in extra.keys)], dim=1)
    values = torch.cat([value, *(v.expand(rows, -1, -1, -1).to(value.dtype) for v in extra.values)], dim=1)
    if extra.bias is None:
        return _dispatch(query, keys, values, **route)
    bias = F.pad(extra.bias, (key.shape[1], 0))  # own tokens: log 1
    if form == "auto":
        form = "bias" if takes_masks(route.get("backend")) else "channel"
    if form == "bias":
        return _dispatch(query, keys, values, attn_mask=bias.to(query.dtype).view(1, 1, 1, -1), **route)
    return _with_channels(query, keys, values, bias, **route)


def _with_channels(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, **route: Any) -> Tensor:
    """log w rides on two more channels; all are padded to a multiple of 8, as kernels want."""
    width, scale = query.shape[-1], query.shape[-1] ** -0.5
    fill = (width + 2 + 7) // 8 * 8 - width
    high = (bias / scale).to(keys.dtype)
    low = (bias / scale - high.float()).to(keys.dtype)
    channels = F.pad(torch.stack([high, low], dim=-1), (0, fill - 2)).view(1, -1, 1, fill)
    ones = F.pad(query.new_ones(2), (0, fill - 2)).expand(*query.shape[:-1], fill)
    keys = torch.cat([keys, channels.expand(*keys.shape[:-1], fill)], dim=-1)
    out = _dispatch(torch.cat([query, ones], dim=-1), keys, F.pad(values, (0, fill)), scale=scale, **route)
    return out[..., :width]


def takes_masks(backend: Any) -> bool:
    """Whether this back end of diffusers' dispatcher (None = the active one) adds a float mask to the scores."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    active = _AttentionBackendRegistry.get_active_backend()[0] if backend is None else backend
    return str(getattr(active, "value", active)) in MASKED


def _dispatch(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    return dispatch_attention_fn(query, key, value, **options)
