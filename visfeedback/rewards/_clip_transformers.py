"""CLIP towers in the format of transformers: ``config.json``, weights, tokenizer, ``preprocessor_config.json``.

A folder without tokenizer files reads prompts with CLIP's own vocabulary, if its text tower has that many entries.
What a later release of transformers makes of pictures does not matter here: see ``_pixels``. May import: types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from visfeedback.plugins import InputError
from visfeedback.rewards import _weights
from visfeedback.rewards._clip import HF_CONFIG, HF_STEMS, Towers, no_text, origin_of
from visfeedback.rewards._pixels import Recipe, from_transformers

CLIP_VOCABULARY = 49408
TEXT_WEIGHTS = ("text_model.*", "text_projection.*", "logit_scale")
BUFFERS = ("*.position_ids",)
"""Older releases stored these counts 0, 1, 2, ... with the weights."""


def load(
    place: Path, model: str, what: str, device: str, dtype: str, images_only: bool = False, ignore: Sequence[str] = ()
) -> Towers:
    """Towers from a folder, or from a checkpoint file beside a ``config.json``.

    ``ignore`` are patterns of weights in the file that are not CLIP's: the head of a predictor that was saved with it.
    """
    folder = place if place.is_dir() else place.parent
    number = _weights.dtype_of(dtype)
    config = _config(folder, what)
    with _weights.SkipInit():
        network = _network(config, folder, what, images_only)
    state = _weights.read_state(place, what, HF_STEMS)
    _weights.fill(network, state, place, what, [*BUFFERS, *ignore, *(TEXT_WEIGHTS if images_only else ())])
    vision = network.vision_model.config
    encoder = _encoder(network, vision)
    network.to(device=device, dtype=number).eval().requires_grad_(False)
    return Towers(
        recipe=_recipe(folder, vision.image_size, what),
        encoder=encoder,
        origin=origin_of(place, model, _weights.sha256(place, what, HF_STEMS), dtype),
        device=torch.device(device),
        dtype=number,
        width=network.visual_projection.out_features,
        modules=network,
        see=lambda pixels: network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output),
        read=lambda ids: network.text_projection(network.text_model(input_ids=ids).pooler_output),
        tokenize=no_text if images_only else _tokenize(folder, network.text_model.config, what),
        scale=1.0 if images_only else float(state["logit_scale"].float().exp()),
    )


def _config(folder: Path, what: str) -> Any:
    from transformers import CLIPConfig, CLIPVisionConfig

    settings = _weights.read_json(folder / HF_CONFIG, what)
    try:
        if settings.get("model_type") == "clip_vision_model":
            return CLIPVisionConfig.from_dict(settings)
        return CLIPConfig.from_dict(settings)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"{what}: {folder / HF_CONFIG} is no CLIP's: {_weights.first_line(error)}") from None


def _network(config: Any, folder: Path, what: str, images_only: bool) -> Any:
    from transformers import CLIPModel, CLIPVisionModelWithProjection

    try:
        if config.model_type == "clip" and not images_only:
            return CLIPModel(config)
        vision = config
        if config.model_type == "clip":
            vision = config.vision_config
            vision.projection_dim = config.projection_dim  # the towers' own values are not used by CLIPModel
        elif not images_only:
            raise ValueError("it has no text tower")
        return CLIPVisionModelWithProjection(vision)
    except (ValueError, TypeError, KeyError, ZeroDivisionError, RuntimeError) as error:
        raise InputError(f"{what}: {folder / HF_CONFIG} makes no CLIP: {_weights.first_line(error)}") from None


def _encoder(network: Any, vision: Any) -> str:
    """Names the image tower by its weights and by what of its configuration is not in their shapes."""
    tower = nn.ModuleDict({"vision": network.vision_model, "projection": network.visual_projection})
    numbers = (vision.hidden_act, vision.num_attention_heads, vision.layer_norm_eps, vision.patch_size)
    return f"clip-{_weights.tower_hash(tower, f'transformers unit {numbers}')}"


def _recipe(folder: Path, size: int, what: str) -> Recipe:
    """transformers 5 writes the image processor into ``processor_config.json``, earlier ones into its own file."""
    own, joint = folder / "preprocessor_config.json", folder / "processor_config.json"
    settings: Any = _weights.read_json(own, what) if own.is_file() else {}
    if not settings and joint.is_file():
        settings = _weights.read_json(joint, what).get("image_processor", {})
    return from_transformers(settings, size, what)


def _tokenize(folder: Path, config: Any, what: str) -> Callable[[Sequence[str]], tuple[Tensor, Tensor]]:
    tokenizer, context = _tokenizer(folder, config.vocab_size, what), config.max_position_embeddings
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{what}: the tokenizer in {folder} has {len(tokenizer)} entries, its text tower {config.vocab_size}"
        )

    def tokenize(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = tokenizer(list(prompts), padding=True, truncation=True, max_length=context, return_tensors="pt").input_ids
        return ids, _ends(ids, config.eos_token_id) + 1

    return tokenize


def _ends(ids: Tensor, end: int) -> Tensor:
    """Where the text tower takes its vector, by its own rule: at the highest id if ``end`` is 2 (as in OpenAI's
    configurations, which are wrong about it), else at the first ``end``."""
    return (ids if end == 2 else (ids == end).int()).argmax(dim=-1)


def _tokenizer(folder: Path, vocabulary: int, what: str) -> Any:
    from transformers import AutoTokenizer

    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        try:
            return AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{what}: no tokenizer can be read in {folder}: {_weights.first_line(error)}") from None
    if vocabulary != CLIP_VOCABULARY:
        raise InputError(f"{what}: no tokenizer.json in {folder}; copy the model's tokenizer files there")
    return clip_tokenizer()


def clip_tokenizer() -> Any:
    """CLIP's own tokenizer from the vocabulary that open_clip ships: the ids of every published CLIP folder."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    words = SimpleTokenizer()
    own = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    merges: Any = list(words.bpe_ranks)  # pairs; the annotation there knows only the older joined form
    return CLIPTokenizer(vocab={own.get(word, word): i for word, i in words.encoder.items()}, merges=merges)
