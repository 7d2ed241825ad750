"""LoRA in diffusers' own format: check a file before it is loaded, save one, switch between those that are there.

diffusers only warns when keys of an adapter are missing or unknown; an adapter of another model would quietly do
nothing, so names and shapes are compared here first.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from visfeedback.backbones.sources import ADAPTER_FILE, find_adapter
from visfeedback.plugins import InputError
from visfeedback.types.files import write_atomic

POLICY = "default"
"""adapter name of the policy; diffusers collects metadata for this name only"""


def attach(pipe: Any, adapter: str, name: str = POLICY) -> Path:
    """Load a LoRA into the pipeline, under the name of the policy or another one; returns its weights file.

    Raises InputError in one line when it is missing, damaged, or does not fit this model.
    """
    file = find_adapter(adapter)
    state = _read(pipe, file, adapter)
    for prefix in ("unet", "text_encoder"):
        part = {key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")}
        _check(getattr(pipe, prefix), part, adapter)
    if not any(key.startswith(("unet.", "text_encoder.")) for key in state):
        raise InputError(f"adapter {adapter!r} has no LoRA weights for unet or text_encoder: it is of another model")
    _check_layers(state, adapter)
    with _errors_only("diffusers.loaders.lora_base"):  # it warns when only one of the two networks has a LoRA
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    for network in (pipe.unet, pipe.text_encoder):
        network.eval()  # peft makes new layers in training mode: the dropout of the adapter's own training would act
    return file


def save(pipe: Any, folder: Path, unet: Mapping[str, Tensor], dtype: torch.dtype) -> Path:
    """Write the policy's LoRA for ``load_lora_weights`` of stock diffusers, atomically; returns the file.

    Rank and alpha travel in the file's metadata: without it an alpha unlike the rank would be lost. LoRA weights that
    came along for the text encoder go along, untrained.
    """
    from peft import get_peft_model_state_dict

    parts: dict[str, Mapping[str, Tensor]] = {"unet": unet}
    if POLICY in getattr(pipe.text_encoder, "peft_config", {}):
        parts["text_encoder"] = get_peft_model_state_dict(pipe.text_encoder, adapter_name=POLICY)
    options: dict[str, Any] = {}
    for part, state in parts.items():
        layers = {name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()}
        options |= {f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": _metadata(getattr(pipe, part))}
    with tempfile.TemporaryDirectory() as scratch:
        pipe.save_lora_weights(scratch, **options)
        return write_atomic(folder / ADAPTER_FILE, _in_order((Path(scratch) / ADAPTER_FILE).read_bytes()))


def _in_order(data: bytes) -> bytes:
    """safetensors writes metadata in an order drawn anew each time; sorted, the same weights are the same file."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def set_dropout(network: Any, adapter: str, probability: float) -> None:
    """Dropout on the input of this LoRA's layers while they train; 0 = none. It acts in this network from now on."""
    from peft.tuners.lora import LoraLayer

    network.peft_config[adapter].lora_dropout = probability
    for layer in network.modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_dropout:
            layer.lora_dropout[adapter] = nn.Dropout(probability) if probability else nn.Identity()


def activate(network: nn.Module, adapter: str | None, trainable: bool) -> None:
    """Use this LoRA of the network, or none of them.

    peft couples "in use" with "trainable"; an adapter that is merely looked at must not collect gradients.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in network.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(adapter is not None)
            if adapter is not None:
                layer.set_adapter([adapter], inference_mode=not trainable)


def _metadata(network: Any) -> dict[str, Any]:
    """The LoRA's configuration; sets are sorted, so that saving twice writes the same words."""
    config = network.peft_config[POLICY].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _read(pipe: Any, file: Path, adapter: str) -> dict[str, Tensor]:
    """The state in peft's names (``unet.<module>.lora_A.weight``), also of kohya and older diffusers files."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    try:
        state = pipe.lora_state_dict(str(file.parent), weight_name=file.name, unet_config=pipe.unet.config)[0]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"adapter {adapter!r}: {file} is damaged or no LoRA: {_first_line(error)}") from None
    if not all("lora" in key for key in state):
        raise InputError(f"adapter {adapter!r}: {file} is no LoRA; expected keys like unet.<module>.lora_A.weight")
    return state if any("lora_A" in key for key in state) else convert_unet_state_dict_to_peft(state)


def _check(network: nn.Module, state: dict[str, Tensor], adapter: str) -> None:
    """Every A must read and every B write as many features as the layer it is named after."""
    for key, value in state.items():
        name, _, which = key.partition(".lora_")
        try:
            layer = network.get_submodule(name)
        except AttributeError:
            raise InputError(f"adapter {adapter!r} is of another model: there is no layer {name}") from None
        axis = {"A": 1, "B": 0}.get(which[:1])
        weight = getattr(layer, "weight", None)
        if axis is None or weight is None or value.ndim < 2:
            continue
        if value.shape[axis] != weight.shape[axis]:
            raise InputError(
                f"adapter {adapter!r} is of another model: {name} has {weight.shape[axis]} features, "
                f"the adapter {value.shape[axis]}"
            )


def _check_layers(state: dict[str, Tensor], adapter: str) -> None:
    """Every layer has its A and its B, of one rank, and numbers in them: peft would fail somewhere inside, and NaN
    would draw black pictures."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if not torch.isfinite(value.float()).all():
            raise InputError(f"adapter {adapter!r} is damaged: {key} holds NaN or infinite numbers")
        name, _, which = key.partition(".lora_")
        layers.setdefault(name, {})[which[:1]] = value
    for name, parts in layers.items():
        if not parts.keys() & {"A", "B"}:
            continue
        if missing := {"A", "B"} - parts.keys():
            raise InputError(f"adapter {adapter!r} is damaged: {name} has no lora_{missing.pop()}")
        if parts["A"].ndim > 1 and parts["A"].shape[0] != parts["B"].shape[1]:
            ranks = f"{parts['A'].shape[0]} and {parts['B'].shape[1]}"
            raise InputError(f"adapter {adapter!r} is damaged: the ranks of {name} are {ranks}")


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
