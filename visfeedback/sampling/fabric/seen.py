"""What one call of a denoiser tells: size, time and which rows belong to which branch of classifier-free guidance.

May import: torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from visfeedback.plugins import InputError
from visfeedback.sampling.fabric.processors import FabricProcessor
from visfeedback.sampling.fabric.settings import FabricSettings

Branch = Literal["positive", "negative"]
Arguments = dict[str, Any]
"""Arguments of the denoiser's forward by name."""
Text = dict[str, Tensor]
"""Arguments of the denoiser that carry one text, first axis 1."""
CONDITIONS = ("guidance", "timestep_cond", "class_labels")
"""Arguments of denoisers with a row for each image that references share."""


@dataclass(frozen=True)
class Seen:
    rows: int
    height: int
    """of the latents"""
    width: int
    timestep: float
    """in the scheduler's units"""
    branches: tuple[tuple[Branch, slice], ...]
    """covering all rows in order"""
    negative: bool | None
    """whether the pipeline's run has a negative branch, in this or another call; None = not known yet"""
    text_tokens: int


class Family(Protocol):
    """What a module for a kind of network offers; ``unet``, ``sd3`` and ``flux`` are examples."""

    DENOISERS: tuple[str, ...]
    """class names of the networks"""
    PART: str
    """the pipeline's attribute that holds it"""
    STANDS_IN_FOR: tuple[str, ...]
    """processors whose work ours does when it injects"""
    Processor: type[FabricProcessor]

    def layers(self, denoiser: nn.Module) -> dict[str, Any]:
        """Name -> attention module, for every self-attention of image tokens; empty when there is none."""
        ...

    def see(self, pipe: Any, arguments: Arguments, settings: FabricSettings, memory: dict[str, Any]) -> Seen:
        """``memory`` is the family's own, for what only several calls tell."""
        ...

    def encode_text(self, pipe: Any, text: str, tokens: int) -> Text: ...

    def own_text(self, arguments: Arguments, row: int) -> Text:
        """The text of one row of the call itself."""
        ...

    def reference_arguments(self, pipe: Any, arguments: Arguments, latents: Tensor, t: Tensor, text: Text) -> Arguments:
        """The call that shows the network noised references (n, C, h, w) at ``t`` (0-d, the scheduler's units)."""
        ...

    def place(self, denoiser: nn.Module, key: Tensor, size: tuple[int, int], seen: Seen, positions: str) -> Tensor:
        """Keys (1, M, H, D) of a reference whose latents have this size, as the drawn image's queries expect them."""
        ...


def halves(pipe: Any, rows: int, settings: FabricSettings) -> tuple[tuple[Branch, slice], ...]:
    """The branches of a batch that holds both, in the order of the pipelines of diffusers: negative first."""
    order = settings.branches
    if order == "auto":
        guided = getattr(pipe, "do_classifier_free_guidance", None)
        if guided is None:
            raise InputError(
                f"{type(pipe).__name__} does not say whether it guides; pass branches='negative-first', "
                "'positive-first' or 'positive-only'"
            )
        order = "negative-first" if guided else "positive-only"
    if order == "positive-only":
        return (("positive", slice(0, rows)),)
    if rows % 2:
        raise InputError(f"the denoiser got {rows} rows, not two halves; pass branches='positive-only'")
    first, second = ("negative", "positive") if order == "negative-first" else ("positive", "negative")
    return ((first, slice(0, rows // 2)), (second, slice(rows // 2, rows)))


def number(timestep: Any) -> float:
    """A timestep as diffusers passes it: a number, a 0-d tensor or one for each row, which are all alike."""
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)


def lora_scale(options: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of the attention arguments of a call only the LoRA scale is the references' business."""
    return {"scale": options["scale"]} if options and "scale" in options else None


def conditions(arguments: Arguments) -> bytes:
    """What a reference pass takes over from the call beside image, time and text: guidance, sizes, classes."""
    added = arguments.get("added_cond_kwargs") or {}
    beside = {name: arguments.get(name) for name in CONDITIONS}
    beside |= {name: value for name, value in sorted(added.items()) if name != "text_embeds"}
    rows = {name: value[-1:] for name, value in beside.items() if isinstance(value, Tensor) and value.ndim > 0}
    return b"".join(name.encode() + row.float().cpu().numpy().tobytes() for name, row in rows.items())


def repeated(value: Tensor, count: int) -> Tensor:
    """(1, ...) -> (count, ...)."""
    return value.expand(count, *value.shape[1:])


def device_of(pipe: Any) -> torch.device:
    """Where the pipeline computes, also when its parts wait on the CPU."""
    return torch.device(getattr(pipe, "_execution_device", pipe.device))


def no_text(pipe: Any) -> InputError:
    return InputError(
        f"{type(pipe).__name__} has no text encoder for the reference passes; pass prompt=None: they "
        "take the call's text"
    )
