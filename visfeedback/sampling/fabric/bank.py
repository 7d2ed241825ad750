"""Keys and values of references that are kept for their next use, within a memory budget.

They depend on (image, size, timestep, noise, text, conditions, weights, layers) and on nothing of the drawn image, so a
batch, other prompts, seeds and later rounds use them again. What belongs to weights of long ago goes. Beyond the budget
nothing is kept and nothing is thrown away but what the present call has no use for: a step's references come round in a
cycle, of which "the least recently used" would always be the next one needed. May import: torch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Layers = dict[str, tuple[Tensor, Tensor]]
"""Layer name -> keys and values (1, M, H, D)."""


@dataclass(frozen=True)
class Packed:
    """A tensor in 8 bits: 254 steps for each token and head, the largest value exact to half a step."""

    whole: Tensor  # int8
    scale: Tensor  # (..., 1)

    @classmethod
    def of(cls, value: Tensor) -> Packed:
        scale = value.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(value.dtype).tiny) / 127
        return cls((value / scale).round().to(torch.int8), scale)

    def open(self) -> Tensor:
        return self.whole.to(self.scale.dtype) * self.scale


class Bank:
    """Entries under keys; ``keep`` and ``bits`` are those of the settings."""

    def __init__(self, keep: Literal["device", "cpu", "nothing"], bits: int, budget_bytes: float | None) -> None:
        self.keep, self.bits, self.budget = keep, bits, budget_bytes
        self.bytes = 0
        self._entries: dict[Hashable, dict[str, tuple[Tensor | Packed, Tensor | Packed]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, device: torch.device) -> Layers | None:
        """The entry as it was put (8 bits: rounded), on ``device``; None when it was not kept."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        return {name: (_out(k, device), _out(v, device)) for name, (k, v) in entry.items()}

    def put(self, key: Hashable, layers: Layers, stale: Callable[[Any], bool]) -> bool:
        """Keep an entry if it fits, dropping those that are ``stale`` if it must; say whether it is kept."""
        if self.keep == "nothing" or key in self._entries:
            return key in self._entries
        entry = {name: (self._in(k), self._in(v)) for name, (k, v) in layers.items()}
        size = sum(_size(tensor) for pair in entry.values() for tensor in pair)
        if not self._fits(size):
            self.drop_where(stale)
        if not self._fits(size):
            return False
        self._entries[key] = entry
        self.bytes += size
        return True

    def rounded(self, layers: Layers) -> Layers:
        """As an entry would come back, for what finds no room: the images are those of a larger bank."""
        if self.bits != 8:
            return layers
        return {name: (Packed.of(k).open(), Packed.of(v).open()) for name, (k, v) in layers.items()}

    def drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, {})
        self.bytes -= sum(_size(tensor) for pair in entry.values() for tensor in pair)

    def drop_where(self, chosen: Callable[[Any], bool]) -> None:
        for key in [key for key in self._entries if chosen(key)]:
            self.drop(key)

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def _fits(self, size: int) -> bool:
        return self.budget is None or self.bytes + size <= self.budget

    def _in(self, value: Tensor) -> Tensor | Packed:
        value = value.detach()
        if self.bits == 8:
            packed = Packed.of(value)
            return Packed(self._move(packed.whole), self._move(packed.scale))
        return self._move(value)

    def _move(self, value: Tensor) -> Tensor:
        if self.keep == "device":
            return value.contiguous().clone()  # a slice of a batch would keep the whole batch alive
        away = value.to("cpu", copy=True).contiguous()
        return away.pin_memory() if value.is_cuda else away


def _out(value: Tensor | Packed, device: torch.device) -> Tensor:
    if isinstance(value, Packed):
        return Packed(value.whole.to(device, non_blocking=True), value.scale.to(device, non_blocking=True)).open()
    return value.to(device, non_blocking=True)


def _size(value: Tensor | Packed) -> int:
    parts = (value.whole, value.scale) if isinstance(value, Packed) else (value,)
    return sum(part.numel() * part.element_size() for part in parts)
