"""HPSv3: a Qwen2-VL-7B that was trained to score images by people's choices; a logit, higher is better.

Ma, Shui et al. 2025 (arXiv 2508.03789; MizzenAI/HPSv3). The image, a fixed instruction with the prompt, and the
token ``<|Reward|>``, at whose place a small head reads mu (the score) and sigma (unused here). What the published code
(package hpsv3 1.0.0 on transformers 4.45) does otherwise than Qwen2-VL, and so do we:

- positions are plain 0, 1, 2, ... for image tokens too, not the three-dimensional ones of Qwen2-VL;
- the rotary frequencies are rounded to bf16 together with the weights, in training too (``_hpsv3_network.py``);
- the embedding holds exactly the tokenizer's entries.

What comes after ``<|Reward|>`` cannot change the score (attention looks back only) and is not computed. The image
tower runs once per image; for a matrix, keys and values of everything up to the first token in which the prompts
differ are computed once per image too. ``hpsv3_instruction.txt`` is the model's own instruction, Copyright (c) 2024
HPSv3 Team, MIT licence. Left out: sigma, flash attention. May import: types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from visfeedback.plugins import InputError
from visfeedback.rewards import _weights
from visfeedback.rewards._hpsv3_network import PATCH, PIXELS, Network, patches, renamed, shared_prefix, smart_size
from visfeedback.rewards._pixels import OPENAI_MEAN, OPENAI_STD, normalise
from visfeedback.types.records import About, Origin

HUB, FILE, BASE = "MizzenAI/HPSv3", "HPSv3.safetensors", "Qwen/Qwen2-VL-7B-Instruct"
REWARD_TOKEN = "<|Reward|>"
INSTRUCTION = (Path(__file__).parent / "hpsv3_instruction.txt").read_text(encoding="utf-8")

ABOUT = About(
    measures="which image people prefer for the prompt (alignment and quality), by a fine-tuned Qwen2-VL-7B",
    typical="-2 to 13; only differences for one prompt mean something",
    accuracy={"ImageReward test": 66.8, "Pick-a-Pic test": 72.8, "HPDv2 test": 85.4, "HPDv3 test": 76.9,
              "MMRB2": 60.2},
    accuracy_source="HPSv3 README; MMRB2 README",
    licence="MIT (HPSv3), Apache-2.0 (Qwen2-VL-7B)",
    megabytes=33_000.0,
    paper="arXiv 2508.03789",
    hub=HUB,
)  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """A prompt in its instruction: token ids on both sides of the image; the last one is ``<|Reward|>``."""

    before: Tensor
    after: Tensor
    error: str = ""


class HpsV3:
    """DifferentiableReward protocol. ``failures``: pairs of the last ``combine`` without a score, and why."""

    name = "hpsv3"
    range = (-math.inf, math.inf)
    differentiable = True
    reads_prompt = True
    preprocessing = f"hpsv3-smart{PIXELS}-bicubic"

    def __init__(self, network: Network, processor: Any, origin: Origin, encoder: str, device: str = "cpu") -> None:
        self.origin = origin
        self.encoder = encoder
        self.failures: dict[tuple[int, int], str] = {}
        self._network = network.to(device).eval().requires_grad_(False)
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._image_token = self._tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._reward_token = self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        added = self._tokenizer.added_tokens_decoder.values()
        self._control = sorted({*self._tokenizer.all_special_tokens, *(t.content for t in added if t.special)})
        self._device = device

    def preprocess(self, image: Image.Image) -> Tensor:
        """RGB, sides to multiples of 28 with about 200,704 pixels, Pillow's bicubic -> (3, H, W), CLIP's mean and std.

        Alpha is dropped, 16-bit values are cut at 255. Raises InputError for sides of more than 1:200.
        """
        height, width = smart_size(image.height, image.width)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        pixels = (np.array(resized).astype(np.float64) / 255).astype(np.float32)
        return normalise(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), OPENAI_MEAN, OPENAI_STD)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, T, D): T = H * W / 784 image tokens as the language model reads them."""
        count, _, height, width = pixels.shape
        grid = torch.tensor([[1, height // PATCH, width // PATCH]] * count, device=self._device)
        tower = self._network.visual
        tokens = tower(patches(pixels.to(self._device)).to(tower.dtype), grid_thw=grid).pooler_output
        return tokens.reshape(count, -1, tokens.shape[-1])

    def encode_texts(self, prompts: Sequence[str]) -> list[Tokens]:
        return [self._tokens(prompt) for prompt in prompts]

    def unfit(self, prompt: str) -> str:
        """Why images of this prompt have no score; empty when they have one."""
        return self._tokens(prompt).error

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix. NaN for a prompt that holds a control token."""
        images = images.to(self._device, self._network.language_model.dtype)
        good = [column for column, text in enumerate(texts) if not text.error]
        kept = [texts[column] for column in good]
        if pairing == "paired":
            scores = torch.full((len(texts),), math.nan, device=self._device)
            found = self._paired(images[good], kept) if good else scores[:0]
            scores = scores.index_copy(0, torch.tensor(good, dtype=torch.long, device=self._device), found)
        else:
            scores = torch.full((len(images), len(texts)), math.nan, device=self._device)
            if good and len(images):
                scores[:, good] = self._matrix(images, kept)
        rows = [None] if pairing == "paired" else range(len(images))
        bad = [(column, text.error) for column, text in enumerate(texts) if text.error]
        self.failures = {(column if row is None else row, column): error for row in rows for column, error in bad}
        return scores

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) with a gradient to the pixels.

        Resized by torch's antialiased bicubic, which does not round to 8 bits as Pillow does; nothing else differs.
        """
        size = smart_size(pixels.shape[-2], pixels.shape[-1])
        pixels = pixels.to(self._device)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return self.combine(self.encode_images(normalise(pixels, OPENAI_MEAN, OPENAI_STD)), self.encode_texts(prompts))

    def _tokens(self, prompt: str) -> Tokens:
        held = next((token for token in self._control if token in prompt), None)
        if held is not None:
            return Tokens(torch.empty(0), torch.empty(0), f"the prompt holds {held!r}, a control token of the model")
        content = [{"type": "image"}, {"type": "text", "text": INSTRUCTION.replace("{text_prompt}", prompt)}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor(self._tokenizer(text)["input_ids"], device=self._device)
        image, end = (int((ids == token).nonzero()[0]) for token in (self._image_token, self._reward_token))
        return Tokens(ids[:image], ids[image + 1 : end + 1])

    def _paired(self, images: Tensor, texts: Sequence[Tokens]) -> Tensor:
        """(B,): one pass over whole sequences, padded on the right, where nothing looks."""
        rows = [self._sequence(image, text) for image, text in zip(images, texts, strict=True)]
        last = torch.tensor([len(row) - 1 for row in rows], device=self._device)
        states = self._read(nn.utils.rnn.pad_sequence(rows, batch_first=True), 0)
        return self._score(states[torch.arange(len(rows), device=self._device), last])

    def _matrix(self, images: Tensor, texts: Sequence[Tokens]) -> Tensor:
        """(N, P): what all prompts begin with is read once, then each prompt's rest with the keys and values kept."""
        from transformers import DynamicCache

        after = [text.after for text in texts]
        common = shared_prefix(after)
        start = Tokens(texts[0].before, after[0][:common])
        cache = DynamicCache(config=self._network.language_model.config)
        prefix = torch.stack([self._sequence(image, start) for image in images])
        self._read(prefix, 0, cache)
        columns: list[Tensor] = []
        for ids in after:
            rest = self._embed(ids[common:]).expand(len(images), -1, -1)
            columns.append(self._score(self._read(rest, prefix.shape[1], cache)[:, -1]))
            cache.crop(-rest.shape[1])
        return torch.stack(columns, 1)

    def _sequence(self, image: Tensor, text: Tokens) -> Tensor:
        """(L, D): embeddings of the text before the image, the image, the text after it."""
        return torch.cat([self._embed(text.before), image, self._embed(text.after)])

    def _embed(self, ids: Tensor) -> Tensor:
        return self._network.language_model.embed_tokens(ids)

    def _read(self, embeddings: Tensor, start: int, cache: Any = None) -> Tensor:
        """(B, L, D) -> last states (B, L, D); positions count from ``start``, the same on all three axes."""
        count, length, _ = embeddings.shape
        positions = torch.arange(start, start + length, device=self._device).expand(3, count, length)
        return self._network.language_model(
            inputs_embeds=embeddings, position_ids=positions, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state

    def _score(self, states: Tensor) -> Tensor:
        """States at ``<|Reward|>`` (B, D) -> mu (B,), in fp32."""
        return self._network.rm_head(states.float())[:, 0]


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> HpsV3:
    """``hpsv3``, ``hpsv3@HPSv3.safetensors`` or ``hpsv3@FOLDER``. Published: bf16, 17 GB.

    Configuration, tokenizer and processor of Qwen2-VL-7B-Instruct are read from beside the weights when a
    ``config.json`` is there, else from the hub (small files only). Raises InputError when something is missing or does
    not fit.
    """
    if variant:
        raise InputError(f"hpsv3 has no variant {variant!r}; write --reward hpsv3 or hpsv3@PATH")
    computed = _weights.dtype_of(dtype)
    file = _weights.resolve(path, HUB, FILE, "hpsv3")
    folder = _base(file)
    config, processor = _open(folder)
    state = renamed(_weights.read_state(file, "hpsv3"))
    rows = len(state["language_model.embed_tokens.weight"]) if "language_model.embed_tokens.weight" in state else 0
    if rows:
        config.text_config.vocab_size = rows
        _add_reward_token(processor.tokenizer, rows, file, folder)
    network = _build(config, computed)
    _weights.fill(network, state, file, "hpsv3")
    origin = Origin.model_validate({
        "model": path or HUB, "revision": _weights.revision(file), "checkpoint_sha256": _weights.sha256(file, "hpsv3"),
        "dtype": dtype,
    })  # fmt: skip
    eyes = config.vision_config  # heads and activation are not in the weights' shapes
    encoder = f"hpsv3-{_weights.tower_hash(network.visual, f'{dtype} {eyes.num_heads} {eyes.hidden_act}')}"
    return HpsV3(network, processor, origin, encoder, device)


def _base(file: Path) -> Path:
    if (file.parent / "config.json").is_file():
        return file.parent
    try:
        return _weights.resolve("", BASE, "", "hpsv3", _weights.SMALL_FILES)
    except InputError:
        raise InputError(
            f"hpsv3: config, tokenizer and processor of {BASE} are neither beside {file} nor on the hub's cache; "
            f"copy its small files (*.json, *.txt) into {file.parent}"
        ) from None


def _open(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoProcessor, Qwen2VLConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InputError(f"hpsv3: {folder} holds no processor of {BASE}: {_weights.first_line(error)}") from None
    if not isinstance(config, Qwen2VLConfig) or getattr(processor, "tokenizer", None) is None:
        raise InputError(f"hpsv3: {folder} is of another model; expected config and processor of {BASE}")
    if not getattr(processor, "chat_template", None):
        raise InputError(f"hpsv3: {folder} has no chat template; copy chat_template.json of {BASE}")
    return config, processor


def _add_reward_token(tokenizer: Any, rows: int, file: Path, folder: Path) -> None:
    tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    if len(tokenizer) != rows:
        raise InputError(f"hpsv3: {file} has {rows} embeddings, the tokenizer in {folder} {len(tokenizer)} entries")


def _build(config: Any, dtype: torch.dtype) -> Network:
    from transformers.initialization import no_init_weights

    with no_init_weights():  # minutes for seven billion numbers that are overwritten
        return Network(config, dtype)
