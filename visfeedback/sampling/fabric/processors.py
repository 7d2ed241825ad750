"""What our attention processors have in common: record keys and values, inject references, or stand aside.

A processor is a plain object on one attention layer. Idle, it hands the call to the processor that was there before, so
nothing changes. What it injects are plain attributes that the session sets before each pass, so that ``torch.compile``
sees tensors, not tables. May import: torch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.sampling.fabric.weighting import Injection, attend, weighted


class FabricProcessor:
    """Base of one small class for each kind of network."""

    _attention_backend: Any = None
    """of diffusers' dispatcher, None = the active one; ``set_attention_backend`` finds it here"""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.recording = False
        self.recorded: tuple[Tensor, Tensor] | None = None
        """keys and values (n, M, H, D) of the image tokens of the last recorded pass"""
        self.injections: tuple[Injection, ...] = ()
        """covering all rows of the batch; empty = nothing to inject"""
        own = "xformers" if type(original).__name__.startswith("XFormers") else None
        self._attention_backend = getattr(original, "_attention_backend", own)

    @property
    def idle(self) -> bool:
        return not self.recording and not self.injections

    def keep(self, key: Tensor, value: Tensor) -> None:
        if self.recording:
            self.recorded = (key.detach(), value.detach())

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries that see references, (B, Nq, H, D)."""
        if not self.injections:
            return self.attend_own(query, key, value)
        return attend(query, key, value, self.injections, **self._route)

    def attend_own(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries that see their own tokens only."""
        return weighted(query, key, value, None, **self._route)

    @property
    def _route(self) -> dict[str, Any]:
        return {"backend": self._attention_backend}


def refuse_mask(mask: Any) -> None:
    """References have no place in a mask made for own tokens. Raises InputError."""
    if mask is not None:
        raise InputError("fabric does not go with a mask on self-attention; call the pipeline without attention_mask")


def heads(states: Tensor, count: int) -> Tensor:
    """(B, N, H * D) -> (B, N, H, D)."""
    return states.unflatten(-1, (count, -1))
