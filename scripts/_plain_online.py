"""For bench_online.py: the D3PO and DDPO steps as their usual scripts write them, and TRL's own DDPO trainer.

All learn from given paths: latents (B, T + 1, C, h, w) and discrete steps (T,). Guidance is one call of a doubled batch
with gradients through both branches.
"""

from __future__ import annotations

import copy
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ETA, BETA, CLIP, CLIP_DDPO = 1.0, 0.1, 0.1, 1e-4


class Plain:
    """What both steps share: the guided network and the log-probability of a DDIM step."""

    def __init__(
        self, pipe: Any, prompts: list[str], steps: int, guidance: float, optimizer: Any, parameters: list[Any]
    ):
        self.pipe, self.guidance, self.optimizer, self.parameters = pipe, guidance, optimizer, parameters
        pipe.scheduler.set_timesteps(steps)
        self.timesteps, self.jump = pipe.scheduler.timesteps, pipe.scheduler.config.num_train_timesteps // steps
        with torch.no_grad():
            text, empty = (self._embed(texts) for texts in (prompts, [""] * len(prompts)))
        self.text, self.empty = text, empty

    def _embed(self, texts: list[str]) -> torch.Tensor:
        found = self.pipe.encode_prompt(texts, self.pipe.unet.device, 1, do_classifier_free_guidance=False)
        return found[0]

    def log_prob(self, unet: Any, rows: list[int], x: torch.Tensor, after: torch.Tensor, k: int) -> torch.Tensor:
        """(B,) of step k, mean over elements."""
        states = torch.cat([self.empty[rows], self.text[rows]])
        t = self.timesteps[k].to(x.device)
        without, given = unet(torch.cat([x, x]), t, encoder_hidden_states=states).sample.chunk(2)
        prediction = without + self.guidance * (given - without)
        scheduler = self.pipe.scheduler
        alpha = scheduler.alphas_cumprod[int(t)]
        later = int(t) - self.jump
        alpha_later = scheduler.alphas_cumprod[later] if later >= 0 else scheduler.final_alpha_cumprod
        if scheduler.config.prediction_type == "v_prediction":
            x0, eps = (alpha**0.5 * x - (1 - alpha) ** 0.5 * prediction,
                       alpha**0.5 * prediction + (1 - alpha) ** 0.5 * x)  # fmt: skip
        else:
            x0, eps = (x - (1 - alpha) ** 0.5 * prediction) / alpha**0.5, prediction
        sigma = ETA * ((1 - alpha_later) / (1 - alpha) * (1 - alpha / alpha_later)) ** 0.5
        mean = alpha_later**0.5 * x0 + (1 - alpha_later - sigma**2) ** 0.5 * eps
        density = -((after - mean) ** 2) / (2 * sigma**2) - torch.log(sigma) - math.log(math.sqrt(2 * math.pi))
        return density.mean(dim=(1, 2, 3))

    def finish(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class PlainD3PO(Plain):
    """All pairs of a group, two images at a time, under the policy and under a second network. In its favour, one
    optimizer step is taken for all pairs, where the released script takes one for each."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.reference = copy.deepcopy(self.pipe.unet).requires_grad_(False)
        self.reference.disable_adapters()

    def pair(self, latents: torch.Tensor, i: int, j: int, k: int) -> torch.Tensor:
        """Loss of one pair, i the better one, at one step."""
        rows, x, after = [i, j], latents[[i, j], k], latents[[i, j], k + 1]
        now = self.log_prob(self.pipe.unet, rows, x, after, k)
        with torch.no_grad():
            before = self.log_prob(self.reference, rows, x, after, k)
        ratio = torch.exp(now - before).clamp(1 - CLIP, 1 + CLIP)
        return -F.logsigmoid(BETA * (torch.log(ratio[0]) - torch.log(ratio[1])))

    def learn(self, latents: torch.Tensor, scores: list[float]) -> float:
        """Mean loss over pairs and steps; adds its gradient where gradients are on."""
        pairs = [(i, j) if scores[i] > scores[j] else (j, i) for i, j in combinations(range(len(scores)), 2)]
        steps, total = latents.shape[1] - 1, 0.0
        for i, j in pairs:
            for k in range(steps):
                loss = self.pair(latents, i, j, k) / (len(pairs) * steps)
                if torch.is_grad_enabled():
                    loss.backward()
                total += loss.item()
        return total


class PlainDDPO(Plain):
    """PPO's clipped loss step by step."""

    def learn(self, latents: torch.Tensor, log_prob: torch.Tensor, advantages: torch.Tensor) -> float:
        """Mean loss over steps; adds its gradient where gradients are on."""
        rows, steps, total = list(range(len(latents))), latents.shape[1] - 1, 0.0
        for k in range(steps):
            now = self.log_prob(self.pipe.unet, rows, latents[:, k], latents[:, k + 1], k)
            ratio = torch.exp(now - log_prob[:, k])
            clipped = torch.clamp(ratio, 1 - CLIP_DDPO, 1 + CLIP_DDPO)
            loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean() / steps
            if torch.is_grad_enabled():
                loss.backward()
            total += loss.item()
        return total


class TrlDDPO:
    """TRL's DDPOTrainer on the same model folder: its own pipeline, LoRA (rank 4), optimizer and loop."""

    def __init__(self, model: str, prompts: list[str], steps: int, guidance: float, scratch: Path) -> None:
        from accelerate import PartialState

        PartialState()  # TRL logs before it makes its accelerator
        from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

        pipeline = DefaultDDPOStableDiffusionPipeline(model, use_lora=True)
        count = len(prompts)
        config = DDPOConfig(
            num_epochs=1, sample_num_steps=steps, sample_eta=ETA, sample_guidance_scale=guidance, log_with=None,
            sample_batch_size=count, sample_num_batches_per_epoch=1, train_batch_size=count, train_cfg=True,
            train_gradient_accumulation_steps=1, train_clip_range=CLIP_DDPO, mixed_precision="no",
            train_learning_rate=1e-5,
            project_kwargs={"project_dir": str(scratch)}, train_use_8bit_adam=False,
        )  # fmt: skip
        self.trainer: Any = DDPOTrainer(
            config, lambda *given: (torch.zeros(count), {}), lambda: (prompts[0], {}), pipeline, None
        )
        pipe = pipeline.sd_pipeline
        pipe.scheduler.set_timesteps(steps)
        encoded = [pipe.encode_prompt(texts, pipe.unet.device, 1, do_classifier_free_guidance=False)[0].detach()
                   for texts in ([""] * count, prompts)]  # fmt: skip
        self.trainer.sample_neg_prompt_embeds = encoded[0][:1]
        self.trainer.train_neg_prompt_embeds = encoded[0]
        self.empty, self.text, self.timesteps = encoded[0], encoded[1], pipe.scheduler.timesteps

    def learn(self, latents: torch.Tensor, log_prob: torch.Tensor, advantages: torch.Tensor) -> float:
        """Mean loss over steps, as TRL computes it; adds its gradient where gradients are on."""
        steps, total, states = latents.shape[1] - 1, 0.0, torch.cat([self.empty, self.text])
        for k in range(steps):
            t = self.timesteps[k].expand(len(latents))
            given = (latents[:, k], t, latents[:, k + 1], log_prob[:, k], advantages, states)
            loss = self.trainer.calculate_loss(*given)[0] / steps
            if torch.is_grad_enabled():
                loss.backward()
            total += loss.item()
        return total

    def run(self, latents: torch.Tensor, log_prob: torch.Tensor, advantages: torch.Tensor) -> None:
        """One optimizer step of its own loop."""
        batch = {
            "prompt_embeds": self.text, "timesteps": self.timesteps.repeat(len(latents), 1), "latents": latents[:, :-1],
            "next_latents": latents[:, 1:], "log_probs": log_prob, "advantages": advantages,
            "negative_prompt_embeds": self.empty,
        }  # fmt: skip
        self.trainer._train_batched_samples(0, 0, 0, [batch])
