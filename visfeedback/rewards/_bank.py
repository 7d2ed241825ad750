"""Keys and values of images, kept between calls: the same pictures with new prompts cost only the text tower.

May import: types.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor


class Bank:
    """Keys and values of the images seen last, found again by what their features are.

    Worth its memory when prompts for the same images come one call after another: an image of ViT-L size takes
    14.5 MB in fp32. ``limit_mib`` may be changed at any time; 0 keeps nothing.
    """

    def __init__(self, limit_mib: float) -> None:
        self.limit_mib = limit_mib
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def holds(self, features: Tensor) -> bool:
        """Whether every one of these images (G, ...) is here."""
        return bool(self._kept) and all(_name(row) in self._kept for row in features)

    def fetch(self, features: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """``compute(features)`` (G, ...), each image's from the bank when it is there."""
        if self.limit_mib <= 0:
            return compute(features)
        names = [_name(row) for row in features]
        new = [row for row, name in enumerate(names) if name not in self._kept]
        made = dict(zip(new, compute(features[new]), strict=True)) if new else {}
        found = [made[row] if row in made else self._kept[name] for row, name in enumerate(names)]
        for name, value in zip(names, found, strict=True):
            self._keep(name, value)
        return torch.stack(found)

    def _keep(self, name: bytes, value: Tensor) -> None:
        if name in self._kept:
            self._kept.move_to_end(name)
            return
        room = int(self.limit_mib * 2**20 // value.nbytes)
        while self._kept and len(self._kept) >= room:
            self._kept.popitem(last=False)
        if room:
            self._kept[name] = value.clone()  # not a view that keeps its whole batch alive


def _name(row: Tensor) -> bytes:
    return hashlib.sha256(row.detach().cpu().contiguous().view(torch.uint8).numpy().data).digest()
