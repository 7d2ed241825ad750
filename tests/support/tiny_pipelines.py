"""Tiny random pipelines of real classes, 16 x 16 px: SD, SDXL, SD 3 and FLUX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)


def byte_tokenizer(length: int) -> CLIPTokenizer:
    """Every character is a token."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=length)


def vae(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=4, sample_size=16,
        shift_factor=0.0,
    )  # fmt: skip


def clip(kind: type[PreTrainedModel]) -> PreTrainedModel:
    tokenizer = byte_tokenizer(length=16)
    return kind(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, initializer_factor=3.0, projection_dim=32, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip


def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(
        vocab_size=len(byte_tokenizer(16)), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=2,
    ))  # fmt: skip


def sd(channels: int = 4) -> StableDiffusionPipeline:
    """``channels`` of the UNet's input: 9 for inpainting."""
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(CLIPTextModel), tokenizer=byte_tokenizer(16),
        unet=UNet2DConditionModel(
            block_out_channels=(16, 32), layers_per_block=1, sample_size=8, in_channels=channels,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=32, attention_head_dim=2, norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(CLIPTextModel), text_encoder_2=clip(CLIPTextModelWithProjection),
        tokenizer=byte_tokenizer(16), tokenizer_2=byte_tokenizer(16),
        unet=UNet2DConditionModel(
            block_out_channels=(16, 32), layers_per_block=1, sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=64, attention_head_dim=(2, 4),
            norm_num_groups=4, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        add_watermarker=False,
    )  # fmt: skip


def sd3() -> StableDiffusion3Pipeline:
    """Block 0 has the image-only attention of SD 3.5 medium beside the joint one."""
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4,
            caption_projection_dim=64, joint_attention_dim=64, pooled_projection_dim=64, out_channels=4,
            pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        vae=vae(), text_encoder=clip(CLIPTextModelWithProjection), text_encoder_2=clip(CLIPTextModelWithProjection),
        text_encoder_3=None, tokenizer=byte_tokenizer(16), tokenizer_2=byte_tokenizer(16), tokenizer_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux() -> FluxPipeline:
    """Guidance-distilled, with one double and one single block."""
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6),
            guidance_embeds=True,
        ),
        vae=vae(), text_encoder=clip(CLIPTextModel), text_encoder_2=t5(), tokenizer=byte_tokenizer(16),
        tokenizer_2=byte_tokenizer(16), scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


MAKERS: dict[str, Callable[[], Any]] = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux}


def make(family: str) -> Any:
    """The pipeline of a family, always with the same random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = MAKERS[family]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe
