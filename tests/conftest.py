"""Fixtures that more than one room needs: real classes at tiny size, made once a session, no network."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random `StableDiffusionPipeline`: 16x16 px images, latents (4, 8, 8), 16 tokens, DDIM, epsilon."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    tiny_sd_pipeline(seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that makes more such folders: ``make_tiny_sd(seed=1, prediction_type="v_prediction", width=32)``."""

    def make(**options: Any) -> Path:
        folder = tmp_path_factory.mktemp("models") / "tiny-sd"
        tiny_sd_pipeline(**options).save_pretrained(folder)
        return folder

    return make


def tiny_sd_pipeline(seed: int = 0, prediction_type: str = "epsilon", width: int = 16) -> Any:
    """The pipeline behind ``tiny_sd``; ``width`` is the UNet's, so that adapters of another width do not fit."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = byte_tokenizer(length=16)
        text_config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            initializer_factor=3.0,  # prompts should make a visible difference in a random model
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=(8, 16),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=16,
            ),
            text_encoder=CLIPTextModel(text_config),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                block_out_channels=(width, 2 * width),
                layers_per_block=1,
                sample_size=8,
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=32,
                attention_head_dim=2,
                norm_num_groups=4,
            ),
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type=prediction_type,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def byte_tokenizer(length: int) -> Any:
    """A CLIPTokenizer without merges: every character is a token, so any text can be written."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=length)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


MACHINE: dict[str, tuple[Callable[[], bool], str]] = {
    "browser": (
        lambda: Path("/usr/bin/chromium").exists(),
        "no /usr/bin/chromium; on Debian: apt-get install chromium",
    ),
    "gpu": (_has_gpu, "no GPU on this machine"),
    "postgres": (
        lambda: any(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")),
        "no PostgreSQL server programs in /usr/lib/postgresql; on Debian: apt-get install postgresql",
    ),
}
"""Marker -> is it here, and what to say when it is not."""

ALWAYS_IN_CI = {"browser", "postgres"}
"""What can be installed everywhere must be there under CI=true: a skipped test would hide it."""


def pytest_configure() -> None:
    """A shell's background jobs start with Ctrl-C ignored, and every program that a test starts would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, so that a mistake shows early; the order stays as it was within each kind."""
    late = ("slow", "learning", "browser")
    items.sort(key=lambda item: max((late.index(m.name) + 1 for m in item.iter_markers() if m.name in late), default=0))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests whose machine lacks something are skipped by name with the reason."""
    for name, (is_here, reason) in MACHINE.items():
        if item.get_closest_marker(name) is None or is_here():
            continue
        if name in ALWAYS_IN_CI and os.environ.get("CI") == "true":
            pytest.fail(f"{reason} (under CI this is a failure)", pytrace=False)
        pytest.skip(reason)
