"""Encoded prompts of one reward, each encoded once while it is remembered. May import: types, rewards."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from visfeedback.types.protocols import Reward

LIMIT = 64 * 2**20
"""Bytes of encoded prompts that are remembered for one reward; the least recently used go first."""


class Texts:
    """``texts(prompts)`` is ``reward.encode_texts(prompts)``, computed only for prompts that are new."""

    def __init__(self, reward: Reward, batch_size: int, limit: int = LIMIT) -> None:
        self._reward, self._batch, self._limit = reward, batch_size, limit
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._bytes = 0
        self._one_tensor = False
        """whether encode_texts gives one tensor with a row for each prompt, or a list of things"""
        self._last: tuple[tuple[str, ...], Tensor | list[Any]] | None = None

    def __call__(self, prompts: tuple[str, ...]) -> Tensor | list[Any]:
        """All prompts of one call are kept together, however many they are."""
        if self._last is not None and self._last[0] == prompts:
            return self._last[1]
        found = {prompt: self._known[prompt] for prompt in prompts if prompt in self._known}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        for start in range(0, len(new), self._batch):
            part = new[start : start + self._batch]
            found |= dict(zip(part, self._encode(part), strict=True))
        for prompt, value in found.items():
            self._remember(prompt, value)
        rows = [found[prompt] for prompt in prompts]
        texts = torch.stack(rows) if self._one_tensor else rows
        self._last = (prompts, texts)
        return texts

    def _encode(self, prompts: list[str]) -> Tensor | list[Any]:
        encoded = self._reward.encode_texts(prompts)
        self._one_tensor = isinstance(encoded, Tensor)
        return encoded

    def _remember(self, prompt: str, value: Any) -> None:
        if prompt in self._known:
            self._known.move_to_end(prompt)
            return
        self._known[prompt] = value
        self._bytes += size(value)
        while self._bytes > self._limit and len(self._known) > 1:
            self._bytes -= size(self._known.popitem(last=False)[1])


def size(value: Any) -> int:
    """Bytes, about; a tensor is an object of some hundred bytes besides its numbers."""
    if isinstance(value, Tensor):
        return value.nbytes + 512
    if isinstance(value, dict):
        return sum(map(size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(size, value))
    return len(value) if isinstance(value, str | bytes) else 64
