"""Which weights act now: adapters that are on, how strongly, and every in-place change.

What references leave behind belongs to these weights. Walking through a network takes time, so a ``Watch`` walks
once and then looks again at what it found. Changes through ``.data`` (fused adapters, averages of weights, another
precision) count no version, so each parameter's first numbers are looked at, too. May import: torch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

BEGINNING = 8  # numbers of a parameter's first row
_numbers = itertools.count()
_known = WeakIdKeyDictionary()
"""Parameter -> a number of its own for as long as it lives (an id may be given twice)."""


class Watch:
    """The adapter layers and parameters that some networks have now."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        modules = [module for network in networks for module in network.modules()]
        self._layers: list[Any] = [m for m in modules if isinstance(m.__dict__.get("scaling"), dict)]
        parameters = [p for module in modules for p in module.__dict__["_parameters"].values() if p is not None]
        # Weights that offloading puts away and brings back are new objects each time: their adapters alone must do.
        self._parameters = [] if any(p.is_meta for p in parameters) else parameters
        self._numbers = tuple(map(_number, self._parameters))
        self._begun = _beginnings(self._parameters)

    def fingerprint(self) -> int:
        """Equal for equal weights of the same objects; another one after training, fusing or switching adapters."""
        versions = tuple(0 if p.is_inference() else p._version for p in self._parameters)
        return hash((self._numbers, versions, self._begun, tuple(map(_state, self._layers))))


def _state(layer: Any) -> tuple[Any, ...]:
    """Of a layer that PEFT has wrapped: what is on, how strongly, and what is merged."""
    return (
        str(layer.active_adapters),
        str(layer.disable_adapters),
        str(layer.merged_adapters),
        tuple(sorted((name, float(value)) for name, value in layer.scaling.items())),
    )


def _beginnings(parameters: list[nn.Parameter]) -> bytes:
    """A digest of precision and first numbers of each parameter, wherever it lies now."""
    plain = [p for p in parameters if type(p) is nn.Parameter and p.numel()]  # others pack their numbers their own way
    first = [p.detach()[(0,) * (p.ndim - 1)][:BEGINNING].float() if p.ndim else p.detach()[None].float() for p in plain]
    placed: dict[torch.device, list[int]] = {}
    for index, part in enumerate(first):
        placed.setdefault(part.device, []).append(index)
    found: list[Tensor] = list(first)
    for indices in placed.values():  # one copy from each device, not one for each parameter
        joined = torch.cat([first[i] for i in indices]).cpu()
        for i, part in zip(indices, joined.split([len(first[i]) for i in indices]), strict=True):
            found[i] = part
    numbers = torch.cat(found).numpy().tobytes() if found else b""
    return hashlib.sha256(repr([p.dtype for p in plain]).encode() + numbers).digest()


def _number(parameter: nn.Parameter) -> int:
    if parameter not in _known:
        _known[parameter] = next(_numbers)
    return _known[parameter]
