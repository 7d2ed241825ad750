"""Load a diffusers pipeline from anything a user may name, and the backbone of its family.

The family is found by the pipeline's class name in the ``PIPELINES`` of the files of this room.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from visfeedback import plugins
from visfeedback.backbones.adapters import attach
from visfeedback.backbones.sources import find_model, fingerprint, hub_config, model_revision
from visfeedback.plugins import InputError

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A pipeline and where it came from."""

    pipe: Any
    model: str
    """as the user named it"""
    revision: str
    """hub commit or content hash of the model"""
    adapter: str
    """as the user named it; empty for none"""
    family: str
    adapter_revision: str = ""
    """content hash of the adapter file"""


def load_pipeline(
    model: str, *, adapter: str = "", dtype: Dtype = "fp32", device: str = "auto", config: str = ""
) -> Loaded:
    """``model``: hub id, diffusers folder, single-file checkpoint, or a world's model such as ``shapes:sd``.

    ``adapter``: folder, file or hub id of a LoRA. ``device``: auto, cpu, cuda, cuda:1, mps. ``config``: for a single
    file, a diffusers folder or hub id that gives its configuration; without it a folder beside the file with the
    file's name, else the hub's configuration for this kind of checkpoint.
    Raises InputError in one line when something is missing, damaged or of an unsupported kind.
    """
    where = pick_device(device)
    path = find_model(model)
    if config and path.is_dir():
        raise InputError(f"config {config!r} is for single-file models, and {model!r} has its own; leave it out")
    with quiet():
        settings = path if path.is_dir() else _checkpoint_config(path, config)
        family = family_of(_class_name(settings), model)
        pipe = _read(path, settings, family, _dtype(dtype), model)
        pipe.set_progress_bar_config(disable=True)
        file = attach(pipe, adapter) if adapter else None
    return Loaded(
        pipe=pipe.to(where),
        model=model,
        revision=model_revision(path),
        adapter=adapter,
        family=family.__name__.rpartition(".")[2],
        adapter_revision=fingerprint([file]) if file else "",
    )


def load(model: str, *, adapter: str = "", dtype: Dtype = "fp32", device: str = "auto", config: str = "") -> Any:
    """The backbone of the model's family, around ``load_pipeline`` of the same arguments."""
    loaded = load_pipeline(model, adapter=adapter, dtype=dtype, device=device, config=config)
    backbone = plugins.load("backbones", loaded.family).Backbone
    return backbone(
        loaded.pipe,
        model=loaded.model,
        revision=loaded.revision,
        adapter=loaded.adapter,
        adapter_revision=loaded.adapter_revision,
    )


def families() -> dict[str, ModuleType]:
    """Pipeline class name -> the module of this room that serves it."""
    modules = [plugins.load("backbones", name) for name in plugins.names("backbones")]
    return {pipeline: module for module in modules for pipeline in getattr(module, "PIPELINES", ())}


def family_of(class_name: str, model: str) -> ModuleType:
    """The module that serves a pipeline class. Raises InputError naming what exists."""
    known = families()
    if class_name not in known:
        raise InputError(f"model {model!r} is a {class_name}, not supported{plugins.nearest(class_name, known)}")
    return known[class_name]


def pick_device(device: str) -> torch.device:
    """``auto`` is cuda, else mps, else cpu. Of several processes that a launcher started on this machine, each gets
    its own GPU for ``auto`` and ``cuda``, in turn. Raises InputError for a device this machine does not have."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.device_count():
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    kind, _, number = device.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind, 0)
    if not (number or "0").isdecimal() or int(number or 0) >= count:
        raise InputError(f"no device {device!r} on this machine; expected auto, cpu, cuda, cuda:N or mps")
    return torch.device(device)


@contextmanager
def quiet() -> Iterator[None]:
    """No loading bars of diffusers and transformers inside the block: our callers show their own progress."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InputError(f"dtype {name!r}{plugins.nearest(name, DTYPES)}")
    return DTYPES[name]


def _class_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "model_index.json").read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder / 'model_index.json'} is missing or damaged: expected a key _class_name") from None


def _read(path: Path, settings: Path, family: ModuleType, dtype: torch.dtype, model: str) -> Any:
    import diffusers

    pipeline = getattr(diffusers, _class_name(settings))
    try:
        if path.is_dir():
            return pipeline.from_pretrained(str(path), dtype=dtype, **family.LOAD_OPTIONS)
        return pipeline.from_single_file(str(path), config=str(settings), dtype=dtype, **family.LOAD_OPTIONS)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"model {model!r} is damaged or incomplete: {line}") from None


def _checkpoint_config(file: Path, config: str) -> Path:
    """The folder that says how the networks in a single file are built."""
    if config and not Path(config).expanduser().is_dir():
        return hub_config(config, file)
    if config or (file.with_suffix("") / "model_index.json").is_file():
        return Path(config).expanduser() if config else file.with_suffix("")
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    try:
        kind = fetch_diffusers_config(load_single_file_checkpoint(str(file)))
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"model file {file} is damaged: {line}") from None
    return hub_config(kind["pretrained_model_name_or_path"], file)
