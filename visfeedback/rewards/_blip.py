"""The network behind ImageReward and IterComp: BLIP's image tower, a BERT that looks at the image, one affine head.

Paper: ImageReward (https://arxiv.org/abs/2304.05977), on BLIP (https://arxiv.org/abs/2201.12086). The layers are those
of transformers; published checkpoints fit after renaming keys. The head of five linear layers without activations is
multiplied out to one affine map that includes the published shift and scale.

Nothing is done twice or for nothing. An image's keys and values in all cross-attentions (``keys_values``) serve every
prompt (``_bank.py`` keeps them between calls); for so few text tokens that making them would cost more than they save,
their projections are applied to the queries instead. Of the last layer only the first token is computed, which alone
is scored. All ways give the same score to rounding.
Left out: BLIP's projections to the contrastive space, which the score does not use. May import: types.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel
from transformers.initialization import no_init_weights

from visfeedback.plugins import InputError
from visfeedback.rewards import _weights

VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
}  # fmt: skip
"""BLIP's ViT-L/16."""
TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "vocab_size": 30524, "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}  # fmt: skip
"""BERT base with two more tokens; ``med_config.json`` says the same."""
HEAD = (0, 2, 4, 6, 7)
"""Indices of the linear layers of the head; dropout stands between."""
WIDTHS = (1024, 128, 64, 16, 1)
"""What each of them gives."""
SHIFT, SCALE = 0.16717362830052426, 1.0333394966054072
"""Published mean and standard deviation: a score is (head - SHIFT) / SCALE."""
HEAD_PREFIX = "mlp.layers."
TOWERS = {"blip.visual_encoder.": "vision.", "blip.text_encoder.": "text."}
"""Published prefixes and ours."""
UNUSED = ("blip.vision_proj.*", "blip.text_proj.*", "*.position_ids")
RENAMES = (
    ("patch_embed.proj.", "embeddings.patch_embedding."), ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"), ("blocks.", "encoder.layers."), (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."), (".attn.qkv.", ".self_attn.qkv."), (".attn.proj.", ".self_attn.projection."),
)  # fmt: skip
"""Image tower: a piece of a published key -> a piece of transformers' key."""


class BlipNetwork(nn.Module):
    """Pixels and tokens to scores. T image tokens of D dimensions, h heads of d dimensions, L text tokens."""

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        sizes = {**text, "encoder_hidden_size": vision["hidden_size"], "is_decoder": True}  # has cross-attention
        no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id"))  # only generation needs them
        self.text = BlipTextModel(BlipTextConfig(**sizes, **no_ids), add_pooling_layer=False)
        self.head = nn.Linear(text["hidden_size"], 1)  # stays in fp32

    @property
    def _heads(self) -> int:
        return self.text.config.num_attention_heads

    @property
    def _layers(self) -> list[Any]:
        return list(self.text.encoder.layer)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (N, 3, H, W) -> all tokens of the image tower (N, T, D)."""
        return self.vision(pixel_values=pixels.to(self.vision.dtype)).last_hidden_state

    def keys_values(self, features: Tensor) -> Tensor:
        """(G, T, D) -> keys and values of every cross-attention (G, layers, 2, h, T, d)."""
        kept: list[Tensor] = []
        for layer in self._layers:
            attention = layer.crossattention.self
            kept += [_split(part(features), self._heads) for part in (attention.key, attention.value)]
        return torch.stack(kept, dim=1).unflatten(1, (-1, 2))

    def worth_keys(self, features: Tensor, tokens: int) -> bool:
        """Whether ``tokens`` text tokens per image are so many that making keys and values costs fewer operations.

        A layer and head spend tokens * D * (d + T) without them, T * d * (D + tokens) with them (half of it for each).
        """
        (image_tokens, width), inner = features.shape[1:], self.text.config.hidden_size // self._heads
        return tokens * width * (inner + image_tokens) > image_tokens * inner * (width + tokens)

    def scores(self, features: Tensor, ids: Tensor, lengths: Tensor, keys_values: Tensor | None = None) -> Tensor:
        """P prompts for each of G images -> (G, P), float32.

        features: (G, T, D). ids: (G, P, L), padded with anything. lengths: (G, P), tokens that count.
        keys_values: of the same images, (G, layers, 2, h, T, d); None works from the features.
        """
        images, prompts, tokens = ids.shape
        seen = torch.arange(tokens, device=ids.device) < lengths.reshape(-1, 1, 1, 1)
        layers = self._layers
        kept = [None] * len(layers) if keys_values is None else keys_values.unbind(1)
        hidden = self.text.embeddings(input_ids=ids.reshape(-1, tokens))
        for layer, pair in zip(layers, kept, strict=True):
            hidden = self._read(layer, hidden, seen, only_first=layer is layers[-1])
            # All prompts of an image ask it at once, as one long text: what is known of it is not repeated.
            together = self._look(layer.crossattention, hidden.reshape(images, -1, hidden.shape[-1]), features, pair)
            hidden = layer.feed_forward_chunk(together.view_as(hidden))
        return self.head(hidden[:, 0].float()).view(images, prompts)

    def _read(self, layer: Any, hidden: Tensor, seen: Tensor, only_first: bool) -> Tensor:
        """Self-attention over (B, L, W); with ``only_first`` just the first token asks -> (B, 1, W)."""
        own, asking = layer.attention.self, hidden[:, :1] if only_first else hidden
        asked, keys, values = (
            _split(part(states), self._heads)
            for part, states in ((own.query, asking), (own.key, hidden), (own.value, hidden))
        )
        return _close(layer.attention, F.scaled_dot_product_attention(asked, keys, values, attn_mask=seen), asking)

    def _look(self, attention: Any, hidden: Tensor, features: Tensor, kept: Tensor | None) -> Tensor:
        """Cross-attention of (G, L, W) to images, from ``kept`` (G, 2, h, T, d) or else from ``features``."""
        own = attention.self
        asked = _split(own.query(hidden), self._heads)
        if kept is not None:
            return _close(attention, F.scaled_dot_product_attention(asked, kept[:, 0], kept[:, 1]), hidden)
        # q (x K + b) = (q K') x + const, and softmax does not see the constant; likewise a (x V + c) = (a x) V + c.
        to_keys, to_values = (part.weight.unflatten(0, (self._heads, -1)) for part in (own.key, own.value))  # (h, d, D)
        inner = asked.shape[-1]
        mixed = F.scaled_dot_product_attention((asked @ to_keys).flatten(1, 2), features, features, scale=inner**-0.5)
        mixed = mixed.unflatten(1, (self._heads, -1)) @ to_values.transpose(1, 2)
        return _close(attention, mixed + own.value.bias.view(self._heads, 1, inner), hidden)


def _split(states: Tensor, heads: int) -> Tensor:
    """(B, L, h * d) -> (B, h, L, d)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _close(attention: Any, mixed: Tensor, hidden: Tensor) -> Tensor:
    """The end of a BlipTextAttention: heads (B, h, L, d) joined, projected, added to ``hidden`` (B, L, W), normed."""
    return attention.output(mixed.transpose(1, 2).flatten(2), hidden)


def load_network(file: Path, places: Sequence[Path], what: str) -> BlipNetwork:
    """The network of a published checkpoint, in fp32, untrained and in evaluation mode.

    In one of ``places`` may lie ``med_config.json`` (BERT's sizes, as published) and ``vision_config.json`` (fields of
    BlipVisionConfig); without them the published sizes hold.
    Raises InputError for a checkpoint of another model and a config that is none.
    """
    state = _weights.read_state(file, what)
    vision = {**VISION, **_config("vision_config.json", places, VISION, what)}
    text = {**TEXT, **_config("med_config.json", places, TEXT, what)}
    try:
        with no_init_weights():
            network = BlipNetwork(vision, text)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{what}: the configs beside {file} do not fit: {_weights.first_line(error)}") from None
    head = _head(state, text["hidden_size"], file, what)
    _weights.fill(network, {**_renamed(state), **head}, file, what, ignore=UNUSED)
    return network.eval().requires_grad_(False)


def _config(name: str, places: Sequence[Path], known: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The fields of a JSON file that say how large the network is; empty when it is in none of ``places``."""
    path = next((place / name for place in places if (place / name).is_file()), None)
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: type(known[key])(value) for key, value in found.items() if key in known}
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"{what}: {path} is no config of the published kind; remove it to use the sizes of the paper"
        ) from None


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the two towers under our names; what belongs to neither keeps its name."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        tower, part = next(((t, name.removeprefix(p)) for p, t in TOWERS.items() if name.startswith(p)), ("", name))
        if tower == "vision.":
            for theirs, ours in RENAMES:
                part = part.replace(theirs, ours)
            part = f"post_layernorm.{part.removeprefix('norm.')}" if part.startswith("norm.") else part
        if not part.startswith(HEAD_PREFIX):
            found[tower + part] = value
    return found


def _head(state: Mapping[str, Tensor], width: int, file: Path, what: str) -> dict[str, Tensor]:
    """The affine map that the head's layers amount to."""
    widths = (width, *WIDTHS)
    layers = nn.ModuleDict({str(i): nn.Linear(*pair) for i, pair in zip(HEAD, pairwise(widths), strict=True)})
    own = {name: value for name, value in state.items() if name.startswith(HEAD_PREFIX)}
    _weights.fill(nn.ModuleDict({"mlp": nn.ModuleDict({"layers": layers})}), own, file, what)
    weight, bias = collapse([(own[f"{HEAD_PREFIX}{i}.weight"], own[f"{HEAD_PREFIX}{i}.bias"]) for i in HEAD])
    return {"head.weight": weight / SCALE, "head.bias": (bias - SHIFT) / SCALE}


def collapse(layers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Linear layers one after another, each (weight, bias) -> the weight and bias of their product, in float64."""
    weight, bias = (part.double() for part in layers[0])
    for next_weight, next_bias in layers[1:]:
        weight, bias = next_weight.double() @ weight, next_weight.double() @ bias + next_bias.double()
    return weight, bias
