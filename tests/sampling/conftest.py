"""Tiny random pipelines of the families FABRIC knows, the same for every test that asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_pipelines import make


@pytest.fixture(scope="session")
def made() -> dict[str, Any]:
    return {}


@pytest.fixture
def tiny(made: dict[str, Any]) -> Callable[[str], Any]:
    """``tiny("flux")``: the pipeline, which a test must leave as it found it."""

    def get(family: str) -> Any:
        if family not in made:
            made[family] = make(family)
        return made[family]

    return get


@pytest.fixture
def draw() -> Callable[..., torch.Tensor]:
    """``draw(pipe, steps=3, seed=0, **call)``: latents (B, ...) of an ordinary call of the pipeline, 16 x 16 px."""

    def call(pipe: Any, prompt: Any = "a red dog", seed: int = 0, **more: Any) -> torch.Tensor:
        count = len(prompt) if isinstance(prompt, list) else 1
        count *= more.get("num_images_per_prompt", 1)
        generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(count)]
        size: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 3, "output_type": "latent"}
        if "max_sequence_length" in type(pipe).__call__.__code__.co_varnames:
            size["max_sequence_length"] = 16
        return pipe(prompt=prompt, generator=generators, **(size | more)).images

    return call


@pytest.fixture
def photo() -> Callable[..., Image.Image]:
    """``photo(3)``: a 16 x 16 picture of noise, another one for each number."""

    def picture(number: int = 0, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Image.Image:
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(pixels.numpy()).convert(mode)

    return picture
