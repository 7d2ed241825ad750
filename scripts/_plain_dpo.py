"""For bench_dpo.py: the usual Diffusion-DPO LoRA step, and Stable Diffusion networks with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from visfeedback.training.data import Pair, pixels


class PlainStep:
    """One step as the usual Diffusion-DPO LoRA scripts write it."""

    def __init__(
        self, pipe: Any, pairs: list[Pair], side: int, beta: float, optimizer: Any, parameters: list[Any]
    ) -> None:
        self.pipe, self.beta, self.optimizer, self.parameters = pipe, beta, optimizer, parameters
        self.winners = torch.stack([pixels(Path(p.winner_path), side, False) for p in pairs]) * 2 - 1
        self.losers = torch.stack([pixels(Path(p.loser_path), side, False) for p in pairs]) * 2 - 1
        length, prompts = pipe.tokenizer.model_max_length, [p.prompt for p in pairs]
        tokens = pipe.tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        self.tokens = tokens.input_ids
        self.alphas = pipe.scheduler.alphas_cumprod

    def encode(self, rows: list[int], latent_noise: torch.Tensor | None = None) -> torch.Tensor:
        """Latents of winners and losers (2B, C, h, w), sampled."""
        vae = self.pipe.vae
        images = torch.cat([self.winners[rows], self.losers[rows]]).to(vae.device, vae.dtype)
        with torch.no_grad():
            known = vae.encode(images).latent_dist
            noise = torch.randn_like(known.mean) if latent_noise is None else latent_noise
            scale = vae.config.scaling_factor  # multiplied in our order, so that rounding is alike, too
            shift = getattr(vae.config, "shift_factor", None) or 0.0
            return (known.mean - shift) * scale + known.std * scale * noise

    def embed(self, rows: list[int]) -> torch.Tensor:
        """Text states (2B, L, D)."""
        with torch.no_grad():
            return self.pipe.text_encoder(self.tokens[rows].to(self.pipe.text_encoder.device))[0].repeat(2, 1, 1)

    def errors(
        self, latents: torch.Tensor, states: torch.Tensor, noise: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Mean squared error of each image (2B,)."""
        alpha = self.alphas.to(latents.device)[index].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * latents.float() + (1 - alpha).sqrt() * noise.float()).to(latents.dtype)
        unet = self.pipe.unet
        prediction = unet(noisy.to(unet.dtype), index, encoder_hidden_states=states.to(unet.dtype)).sample
        target = noise
        if self.pipe.scheduler.config.prediction_type == "v_prediction":
            target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))

    def loss(self, rows: list[int], noise: torch.Tensor, index: torch.Tensor, latent_noise: torch.Tensor | None = None
             ) -> torch.Tensor:  # fmt: skip
        latents, states = self.encode(rows, latent_noise), self.embed(rows)
        noise, index = noise.repeat(2, 1, 1, 1), index.repeat(2)
        winner, loser = self.errors(latents, states, noise, index).chunk(2)
        self.pipe.unet.disable_adapters()
        with torch.no_grad():
            reference_winner, reference_loser = self.errors(latents, states, noise, index).chunk(2)
        self.pipe.unet.enable_adapters()
        inside = -0.5 * self.beta * ((winner - loser) - (reference_winner - reference_loser))
        return -F.logsigmoid(inside).mean()

    def step(self, rows: list[int]) -> None:
        device = self.pipe.unet.device
        side, channels = self.pipe.unet.config.sample_size, self.pipe.unet.config.in_channels
        noise = torch.randn(len(rows), channels, side, side, device=device)
        index = torch.randint(len(self.alphas), (len(rows),), device=device)
        loss = self.loss(rows, noise, index)
        loss.backward()
        loss.item()  # scripts log it
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def random_pipeline(size: str) -> Any:
    """A StableDiffusionPipeline with random weights: SD 1.5's own sizes, or a few channels for trying the script."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    big = size == "sd15"
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)
    width = 768 if big else 32
    text = CLIPTextConfig(
        vocab_size=49408 if big else len(words), hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=12 if big else 2, num_attention_heads=12 if big else 2, bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    vae_blocks, unet_blocks = ((128, 256, 512, 512), (320, 640, 1280, 1280)) if big else ((8, 16), (16, 32))
    attention = len(unet_blocks) - 1 if big else len(unet_blocks)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=vae_blocks, layers_per_block=2 if big else 1, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * len(vae_blocks), norm_num_groups=32 if big else 4,
            up_block_types=("UpDecoderBlock2D",) * len(vae_blocks), sample_size=512 if big else 16,
        ),
        text_encoder=CLIPTextModel(text), tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            block_out_channels=unet_blocks, layers_per_block=2 if big else 1, sample_size=64 if big else 8,
            down_block_types=("CrossAttnDownBlock2D",) * attention + ("DownBlock2D",) * (len(unet_blocks) - attention),
            up_block_types=("UpBlock2D",) * (len(unet_blocks) - attention) + ("CrossAttnUpBlock2D",) * attention,
            cross_attention_dim=width, attention_head_dim=8 if big else 2, norm_num_groups=32 if big else 4,
        ),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                                set_alpha_to_one=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
