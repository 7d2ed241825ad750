"""Which weights act now: adapters that are on, how strongly, and every in-place change.

What references leave behind belongs to these weights. Walking through a network takes time, so a ``Watch`` walks
once and then looks again at what it found. May import: torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

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

    def fingerprint(self) -> int:
        """Equal for equal weights of the same objects; another one after training or switching adapters."""
        versions = tuple(0 if p.is_inference() else p._version for p in self._parameters)
        return hash((self._numbers, versions, tuple(map(_state, self._layers))))


def _state(layer: Any) -> tuple[Any, ...]:
    """Of a layer that PEFT has wrapped: what is on, how strongly, and what is merged."""
    return (
        str(layer.active_adapters),
        str(layer.disable_adapters),
        str(layer.merged_adapters),
        tuple(sorted((name, float(value)) for name, value in layer.scaling.items())),
    )


def _number(parameter: nn.Parameter) -> int:
    if parameter not in _known:
        _known[parameter] = next(_numbers)
    return _known[parameter]
