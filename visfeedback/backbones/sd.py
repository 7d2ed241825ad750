"""Stable Diffusion 1.x and 2.x: a UNet on VAE latents, one CLIP text encoder, DDPM with eps or v.

The policy is a LoRA (peft) on the UNet; the reference is the same network with the LoRA switched off, so there is no
second UNet. LoRA weights are kept in float32 whatever the network's precision.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visfeedback.backbones.adapters import POLICY, activate, attach, save, set_dropout
from visfeedback.backbones.sources import fingerprint
from visfeedback.diffusion.ddpm import DDPM
from visfeedback.plugins import InputError
from visfeedback.types.batches import Condition
from visfeedback.types.protocols import Weights

PIPELINES = ("StableDiffusionPipeline",)
LOAD_OPTIONS = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""the attention projections: the usual places of a LoRA"""
OLD, START = "old", "start"
"""adapter names of the frozen copies: what the policy was a while ago, and what it started from"""


class SD:
    """Backbone protocol around a ``StableDiffusionPipeline``, whose own parameters are frozen."""

    family = "sd"

    def __init__(
        self, pipe: Any, model: str = "", revision: str = "", adapter: str = "", adapter_revision: str = ""
    ) -> None:
        self.pipe = pipe
        self.model = model
        self.revision = revision
        self.process = DDPM.of(pipe.scheduler).to(pipe.device)
        self._adapter = (adapter, adapter_revision)
        self._active: Weights = "policy"
        for network in (pipe.unet, pipe.vae, pipe.text_encoder):
            network.requires_grad_(False)
        self._prepare_policy()

    @property
    def device(self) -> torch.device:
        return self.pipe.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the frozen networks."""
        return self.pipe.unet.conv_in.weight.dtype

    @property
    def adapter(self) -> str:
        """Where the LoRA in use came from; empty while the network is used without one."""
        return "" if self._bare(self._active) else self._adapter[0]

    @property
    def adapter_revision(self) -> str:
        """Content hash of that LoRA's file; empty as ``adapter``."""
        return "" if self._bare(self._active) else self._adapter[1]

    @property
    def resolution(self) -> int:
        """Pixels of the longer side of the images that the network was made for."""
        size = self.pipe.unet.config.sample_size
        return self.pipe.vae_scale_factor * (size if isinstance(size, int) else max(size))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of square images of ``resolution``."""
        side = self.resolution // self.pipe.vae_scale_factor
        return self.pipe.vae.config.latent_channels, side, side

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The networks that ``predict`` does without: they may leave the device while their results are cached."""
        return self.pipe.vae, self.pipe.text_encoder

    # text and images

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Condition:
        """Tokens (B, L, D) exactly as the pipeline makes them; ``[""]`` is the unconditional branch."""
        tokens, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        return Condition(tokens=tokens)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B,3,H,W) in [0,1] -> mean and std (B,C,h,w), float32, of the scaled latents; std 0 for a tiny VAE."""
        vae = self.pipe.vae
        encoded = vae.encode((2 * pixels - 1).to(self.device, vae.dtype))
        if hasattr(encoded, "latent_dist"):
            mean, std = encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()
        else:
            mean = encoded.latents.float()
            std = torch.zeros_like(mean)
        return (mean - self._shift) * vae.config.scaling_factor, std * vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B,C,h,w) -> pixels (B,3,H,W), float32 in [0,1]; differentiable."""
        vae = self.pipe.vae
        latents = latents.to(self.device, vae.dtype) / vae.config.scaling_factor + self._shift
        return (vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The UNet at the discrete steps of ``t`` (B,); t = 0 is asked as the first step."""
        index = self.process.index(t.to(self.device)).clamp(min=0)
        tokens = condition.tokens.to(self.device, self.dtype)
        return self.pipe.unet(x_t.to(self.dtype), index, encoder_hidden_states=tokens, return_dict=False)[0]

    @property
    def _shift(self) -> float:
        return getattr(self.pipe.vae.config, "shift_factor", None) or 0.0

    # weights

    @contextmanager
    def weights(self, which: Weights) -> Iterator[None]:
        """Inside the block the networks use these weights; what was in use before returns, also after an exception.

        Without a LoRA all are the same. Raises ValueError for ``old`` before ``copy_weights("policy", "old")``.
        """
        before = self._active
        self._switch(which)
        try:
            yield
        finally:
            self._switch(before)

    def copy_weights(self, source: Weights, target: Weights) -> None:
        """Copy the LoRA of ``source`` to ``target`` (policy, old); the reference stays what it is."""
        if "reference" in (source, target):
            raise ValueError("the reference cannot be copied from or to; see freeze_reference")
        if target == "old" and not self._has(OLD):
            self._add_frozen(OLD)
        self._copy(_adapter_name(source), _adapter_name(target))

    def freeze_reference(self) -> None:
        """From now on the reference is the network with the LoRA as it is now: the start of a second training."""
        if not self._has(START):
            self._add_frozen(START)
        self._copy(POLICY, START)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable float32 LoRA parameters of the policy, always in the same order; none without a LoRA."""
        return (parameter for _, parameter in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As ``parameters``, with the names that ``save_adapter(state=...)`` takes: ``<module>.lora_A.weight``."""
        return self._weights_of(POLICY)

    # LoRA

    def add_lora(
        self,
        rank: int = 16,
        alpha: float | None = None,
        targets: Sequence[str] = TARGETS,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        """A fresh LoRA that changes nothing yet: A random from ``seed``, B = 0. ``alpha`` None means rank.

        Raises InputError when a target names no layer or when there is a LoRA already.
        """
        from peft import LoraConfig

        if self._has(POLICY):
            raise InputError("the model has an adapter already; train it on, or load the model without one")
        config = LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,  # pyright: ignore[reportArgumentType]  floats work, too
            lora_dropout=dropout,
            target_modules=list(targets),
            init_lora_weights="gaussian",
        )
        try:
            with torch.random.fork_rng(devices=[]):  # peft draws from the global generator of the cpu
                torch.manual_seed(seed)
                self.pipe.unet.add_adapter(config, POLICY)
        except ValueError as error:
            raise InputError(f"no LoRA on {', '.join(targets)}: {str(error).splitlines()[0]}") from None
        self._prepare_policy()

    @property
    def adapts_text(self) -> bool:
        """Whether a LoRA that came along changes what ``encode_text`` says."""
        return POLICY in getattr(self.pipe.text_encoder, "peft_config", {})

    def load_adapter(self, path: str | Path) -> None:
        """Start from an existing LoRA. Raises InputError when it is missing, damaged or of another model."""
        if self._has(POLICY):
            raise InputError("the model has an adapter already; load the model without one first")
        self._adapter = (str(path), fingerprint([attach(self.pipe, str(path))]))
        self._prepare_policy()

    def checkpoint_gradients(self) -> None:
        """From now on the network computes activations again in the backward pass instead of keeping them."""
        self.pipe.unet.enable_gradient_checkpointing()

    def set_dropout(self, probability: float) -> None:
        """Dropout of the policy's LoRA while it trains, whatever it was trained with before; frozen copies have none.

        Raises ValueError before there is a LoRA.
        """
        if not self._has(POLICY):
            raise ValueError("there is no LoRA yet: call add_lora or load_adapter first")
        set_dropout(self.pipe.unet, POLICY, probability)

    def save_adapter(
        self, folder: str | Path, state: Mapping[str, Tensor] | None = None, dtype: torch.dtype = torch.float32
    ) -> Path:
        """Write the LoRA so that ``pipe.load_lora_weights(folder)`` of stock diffusers takes it; returns the file.

        ``state`` replaces the policy's weights (an average of them, say), under the names of ``named_parameters``.
        The rank and alpha travel in the file's metadata: without it an alpha unlike the rank would be lost.
        """
        unet = state if state is not None else dict(self.named_parameters())
        if not unet:
            raise ValueError("there is no LoRA to save: call add_lora or load_adapter first")
        return save(self.pipe, Path(folder), unet, dtype)

    def _prepare_policy(self) -> None:
        for parameter in self.parameters():
            parameter.data = parameter.data.float()
        self._switch("policy")

    def _bare(self, which: Weights) -> bool:
        """Whether these weights are the network without any LoRA."""
        return which == "reference" and not self._has(START)

    def _copy(self, source: str, target: str) -> None:
        values = dict(self._weights_of(source))
        if not values:
            raise ValueError(f"there are no {source} weights yet: call add_lora, load_adapter or copy_weights first")
        with torch.no_grad():
            for name, parameter in self._weights_of(target):
                parameter.copy_(values[name])

    def _add_frozen(self, adapter: str) -> None:
        """Room for a copy of the policy's LoRA under another name."""
        if not self._has(POLICY):
            raise ValueError("there is no LoRA yet: call add_lora or load_adapter first")
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is meant
            config = copy.deepcopy(self.pipe.unet.peft_config[POLICY])
            config.lora_dropout = 0.0  # a copy is looked at, never trained: with dropout it would be another each time
            self.pipe.unet.add_adapter(config, adapter)
        for _, parameter in self._weights_of(adapter):
            parameter.data = parameter.data.float()
        self._switch(self._active)

    def _has(self, adapter: str) -> bool:
        return adapter in getattr(self.pipe.unet, "peft_config", {})

    def _weights_of(self, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.pipe.unet.named_parameters():
            if ".lora_" in name and f".{adapter}." in name:
                yield name.replace(f".{adapter}.", "."), parameter

    def _switch(self, which: Weights) -> None:
        if which == "old" and not self._has(OLD):
            raise ValueError('there are no old weights yet: call copy_weights("policy", "old") first')
        bare = self._bare(which)
        activate(self.pipe.unet, None if bare else _adapter_name(which), trainable=which == "policy")
        activate(self.pipe.text_encoder, None if bare else POLICY, trainable=False)
        self._active = which


Backbone = SD


def _adapter_name(which: Weights) -> str:
    return {"policy": POLICY, "old": OLD, "reference": START}[which]
