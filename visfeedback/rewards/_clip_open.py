"""CLIP towers in the format of open_clip: ``open_clip_config.json``, weights, and a tokenizer where it is not CLIP's.

``build`` also takes one of open_clip's own architectures by name, for checkpoints that come as a bare file.
Left out: CoCa, whose image tower also writes captions. May import: types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.rewards import _weights
from visfeedback.rewards._clip import OPEN_CONFIG, OPEN_STEMS, ImageRecipe, Towers, no_text, origin_of
from visfeedback.rewards._pixels import from_open_clip

RecipeOf = Callable[[Any], ImageRecipe]
"""Image size of a tower (a number, or height and width) -> its preprocessing."""


def load(
    place: Path,
    model: str,
    what: str,
    device: str,
    dtype: str,
    images_only: bool = False,
    recipe: RecipeOf | None = None,
) -> Towers:
    """Towers from a folder, or from a checkpoint file beside an ``open_clip_config.json``.

    ``recipe`` replaces the preprocessing that the folder describes.
    """
    folder = place if place.is_dir() else place.parent
    settings = _weights.read_json(folder / OPEN_CONFIG, what)
    config = settings.get("model_cfg")
    if not isinstance(config, dict):
        raise InputError(f"{what}: no model_cfg in {folder / OPEN_CONFIG}")

    def described(size: Any) -> ImageRecipe:
        return from_open_clip(settings.get("preprocess_cfg") or {}, size, what)

    tokenizer = None if images_only else _tokenizer(folder, config, what)
    return build(config, place, model, what, device, dtype, recipe or described, tokenizer)


def build(
    config: dict[str, Any],
    place: Path,
    model: str,
    what: str,
    device: str,
    dtype: str,
    recipe: RecipeOf,
    tokenizer: Any,
) -> Towers:
    """Towers of the architecture ``config`` (a ``model_cfg``) with the weights at ``place``.

    ``recipe`` makes the preprocessing once the image size is known; ``tokenizer`` gives ids of the context's length,
    and without one the text tower is dropped.
    """
    number = _weights.dtype_of(dtype)
    with _weights.SkipInit():
        network = _network(config, what)
    state = _weights.read_state(place, what, OPEN_STEMS)
    _weights.fill(network, state, place, what)
    # Heads and activation are not in the weights' shapes.
    numbers = sorted((key, str(value)) for key, value in config.items() if key in ("vision_cfg", "quick_gelu"))
    encoder = f"clip-{_weights.tower_hash(network.visual, f'open_clip unit {numbers}')}"
    kept = network.visual if tokenizer is None else network
    kept.to(device=device, dtype=number).eval().requires_grad_(False)
    return Towers(
        recipe=recipe(network.visual.image_size),
        encoder=encoder,
        origin=origin_of(place, model, _weights.sha256(place, what, OPEN_STEMS), dtype),
        device=torch.device(device),
        dtype=number,
        width=int(config["embed_dim"]),
        modules=kept,
        see=network.visual,
        read=lambda ids: _read(kept, ids),
        tokenize=no_text if tokenizer is None else lambda prompts: _tokenize(kept, tokenizer, prompts),
        scale=float(state["logit_scale"].float().exp()),
    )


def _network(config: dict[str, Any], what: str) -> Any:
    import open_clip

    config = deepcopy(config)
    custom = config.pop("custom_text", False) or "hf_model_name" in config.get("text_cfg", {})
    if "multimodal_cfg" in config:
        raise InputError(f"{what}: a CoCa model; expected a CLIP with two towers")
    for tower, key in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        if f"{key.removesuffix('_pretrained')}_name" in config.get(tower, {}):
            config[tower][key] = False  # weights come from the checkpoint, not from a download
    try:
        return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    except (ValueError, TypeError, KeyError, AssertionError, ZeroDivisionError, RuntimeError, OSError) as error:
        raise InputError(f"{what}: its model_cfg makes no CLIP: {_weights.first_line(error)}") from None


def _trims(network: Any) -> bool:
    """Only what stands before the end token reaches the text vector, and this file knows how to cut the rest."""
    import open_clip

    plain = isinstance(network, open_clip.CLIP) and network.attn_mask is not None
    return plain and network.text_pool_type in ("argmax", "eos")


def _tokenize(network: Any, tokenizer: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    ids = tokenizer(list(prompts))
    if not _trims(network):
        return ids, torch.full((len(ids),), ids.shape[1])
    ends = (ids == network.text_eos_id).int() if network.text_pool_type == "eos" else ids
    return ids, ends.argmax(dim=-1) + 1


def _read(network: Any, ids: Tensor) -> Tensor:
    """Text vectors (P, D) of ids (P, L), with L at most the context: ``encode_text`` takes the whole context only."""
    if not _trims(network):
        return network.encode_text(ids)
    from open_clip.transformer import text_global_pool

    length = ids.shape[1]
    words = network.token_embedding(ids)
    words = words + network.positional_embedding[:length].to(words.dtype)
    words = network.ln_final(network.transformer(words, attn_mask=network.attn_mask[:length, :length]))
    pooled = text_global_pool(words, ids, network.text_pool_type, eos_token_id=network.text_eos_id)
    project = network.text_projection
    if project is None:
        return pooled
    return project(pooled) if isinstance(project, torch.nn.Linear) else pooled @ project


def _tokenizer(folder: Path, config: dict[str, Any], what: str) -> Any:
    import open_clip

    tokenizer: Any
    try:
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{what}: no tokenizer can be read in {folder}: {_weights.first_line(error)}") from None
    entries = tokenizer.vocab_size if isinstance(tokenizer, open_clip.SimpleTokenizer) else len(tokenizer.tokenizer)
    vocabulary = config.get("text_cfg", {}).get("vocab_size", entries)
    if entries > vocabulary:
        raise InputError(f"{what}: the tokenizer in {folder} has {entries} entries, its text tower {vocabulary}")
    return tokenizer
