"""A small honest reward that counts its work, pictures of the shapes world in a folder, and a cache of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from PIL import Image
from torch import Tensor

from visfeedback.shapes.grammar import read
from visfeedback.shapes.renderer import draw_scene, render_image
from visfeedback.types.records import Origin

TEXTS = ("a red circle", "two blue squares", "a green triangle", "a yellow cross")


class Toy:
    """Mean colour of the picture against three numbers made of the prompt; everything it does is counted."""

    range = (-10.0, 10.0)
    differentiable = False

    def __init__(
        self, name: str = "toy", encoder: str = "toy-colours", preprocessing: str = "rgb-8", reads_prompt: bool = True,
        dtype: Any = "fp32", square: bool = True,
    ) -> None:  # fmt: skip
        self.name, self.encoder, self.preprocessing, self.reads_prompt = name, encoder, preprocessing, reads_prompt
        self.origin = Origin(
            model=f"toy:{name}", checkpoint_sha256=hashlib.sha256(name.encode()).hexdigest(), dtype=dtype
        )
        self.square = square
        self.preprocessed = 0
        self.batches: list[int] = []
        self.prompts: list[str] = []
        self.combined: list[tuple[str, tuple[int, ...]]] = []

    def preprocess(self, image: Image.Image) -> Tensor:
        self.preprocessed += 1
        image = image.convert("RGB")
        image = image.resize((8, 8)) if self.square else image
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        return pixels.mean((2, 3))

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        self.prompts += prompts
        digests = [hashlib.sha256(prompt.encode()).digest()[:3] for prompt in prompts]
        return torch.tensor([list(digest) for digest in digests]).float().view(-1, 3) / 255

    def combine(self, images: Tensor, texts: Any, pairing: str = "paired") -> Tensor:
        found = (images * texts).sum(-1) if pairing == "paired" else images @ texts.T
        self.combined.append((pairing, tuple(found.shape)))
        return found


@pytest.fixture
def toy() -> Callable[..., Toy]:
    return Toy


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, where embeddings go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "visfeedback" / "features"


def drawn(text: str, seed: int) -> Image.Image:
    return render_image(draw_scene(read(text), default_rng(seed)))


@pytest.fixture
def draw() -> Callable[[str, int], Image.Image]:
    return drawn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures with prompts in metadata.jsonl; 00.png and 07.png are the same bytes under different prompts."""
    root = tmp_path / "pictures"
    root.mkdir()
    rows = []
    for n in range(10):
        text = TEXTS[n % 4]
        drawn(text, n).save(root / f"{n:02}.png")
        rows.append({"file_name": f"{n:02}.png", "prompt": text})
    (root / "07.png").write_bytes((root / "00.png").read_bytes())
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root
