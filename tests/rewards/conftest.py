"""A tiny random open_clip model in a folder, tokenizer included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

IMAGE = 32
WORDS = ["a", "red", "blue", "green", "circle", "square", "star", "left", "of", "two", "circles"]


def write_clip(folder: Path, seed: int = 0) -> Path:
    """One layer in each tower, 16 dimensions, words of this world."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    size = _write_tokenizer(folder)
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": IMAGE, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": size, "width": 32, "heads": 2, "layers": 1,
                     "hf_tokenizer_name": "local", "tokenizer_kwargs": {"clean": "whitespace"}},
    }  # fmt: skip
    preprocess = {"size": IMAGE, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.5], "interpolation": "bicubic",
                  "resize_mode": "squash"}  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    sizes = {k: v for k, v in model_cfg["text_cfg"].items() if k not in ("hf_tokenizer_name", "tokenizer_kwargs")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(embed_dim=16, vision_cfg=model_cfg["vision_cfg"], text_cfg=sizes)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def _write_tokenizer(folder: Path) -> int:
    from transformers import CLIPTokenizer

    letters = sorted({letter for word in WORDS for letter in word})
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=12)
    tokenizer.save_pretrained(folder)
    return len(pieces)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))
