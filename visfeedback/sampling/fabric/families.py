"""Which module of this folder serves a pipeline's network, and whether its attention is as the module expects.

May import: torch.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from visfeedback import plugins
from visfeedback.plugins import InputError, nearest
from visfeedback.sampling.fabric.processors import FabricProcessor
from visfeedback.sampling.fabric.seen import Family

ROOM = "sampling.fabric"
THREE_BRANCHES = ("image_guidance_scale", "do_perturbed_attention_guidance")
"""Attributes of pipelines whose batch holds more than a positive and a negative branch."""


def known() -> list[Family]:
    modules = [plugins.load(ROOM, name) for name in plugins.names(ROOM)]
    return [cast(Family, module) for module in modules if hasattr(module, "DENOISERS")]


def find(pipe: Any, family: Family | None = None) -> Family:
    """The module that serves the pipeline's denoiser. Raises InputError naming the class and how to add it."""
    if any(hasattr(type(pipe), name) for name in THREE_BRANCHES):
        raise InputError(
            f"{type(pipe).__name__} draws with three branches; fabric knows a positive and a negative one: take the "
            "plain pipeline of this model"
        )
    if family is not None and not hasattr(family, "PART"):
        raise InputError(f"family is {type(family).__name__}; expected a module like visfeedback.sampling.fabric.sd3")
    choices = known() if family is None else [family]
    for choice in choices:
        part = getattr(pipe, choice.PART, None)
        part = getattr(part, "_orig_mod", part)
        if part is not None and (family is not None or _is_one_of(part, choice.DENOISERS)):
            return choice
    names = [name for choice in choices for name in choice.DENOISERS]
    raise InputError(
        f"fabric does not know the attention of {_denoiser_name(pipe)} in {type(pipe).__name__}; known: "
        f"{', '.join(names)}; to add it write a module like visfeedback/sampling/fabric/sd3.py and pass family=module"
    )


def attention_layers(family: Family, denoiser: nn.Module, patterns: Sequence[str]) -> dict[str, Any]:
    """Name -> layer whose name fits a pattern. Raises InputError when there is none, or when somebody else's processor
    sits on one."""
    name = type(denoiser).__name__
    layers = family.layers(denoiser)
    if not layers:
        raise InputError(f"{name} has no self-attention of images that fabric knows; it cannot follow references")
    if getattr(denoiser, "is_cache_enabled", False):
        raise InputError(
            f"{name} reuses attention between steps; call pipe.{family.PART}.disable_cache() before fabric"
        )
    for layer in layers.values():
        if isinstance(layer.processor, FabricProcessor):
            raise InputError("this pipeline is inside a fabric block already; add images with session.like(image)")
        if getattr(layer, "fused_projections", False):
            raise InputError(f"{name} has fused projections; call pipe.unfuse_qkv_projections() before fabric")
        if getattr(layer.processor, "_parallel_config", None) is not None:
            raise InputError(f"{name} splits its tokens over devices; load it without parallel_config for fabric")
    for module in denoiser.modules():
        kind = type(getattr(module, "processor", None)).__name__
        if "IPAdapter" in kind:
            raise InputError(f"{name} carries an IP-Adapter ({kind}); call pipe.unload_ip_adapter() before fabric")
    for path, layer in layers.items():
        kind = type(layer.processor).__name__
        if kind not in family.STANDS_IN_FOR:
            raise InputError(
                f"{name}: {path} has the attention processor {kind}, which fabric would lose; call "
                f"set_default_attn_processor() first (known: {', '.join(family.STANDS_IN_FOR)})"
            )
    return _chosen(layers, patterns)


def _chosen(layers: dict[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    """Layers whose name fits one of the patterns. Raises InputError for a pattern that fits none."""
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            tops = sorted({name.partition(".")[0] for name in layers})
            raise InputError(f"fabric: no attention layer fits {pattern!r}{nearest(pattern, [f'{t}*' for t in tops])}")
    return {name: layer for name, layer in layers.items() if any(fnmatch.fnmatch(name, p) for p in patterns)}


def _is_one_of(part: nn.Module, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(part).__mro__)


def _denoiser_name(pipe: Any) -> str:
    parts = (getattr(pipe, name, None) for name in ("unet", "transformer", "prior"))
    return next((type(part).__name__ for part in parts if part is not None), "no denoiser")
