"""What a training preset may say, section by section.

To add a knob: a field with a docstring in the section it belongs to; it is then a key of the TOML and a flag. The
section `method` is the method's own model: `settings_for("dpo")` is `TrainSettings` with that section typed.
May import: types, plugins.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import Field, create_model, field_validator, model_validator

from visfeedback import plugins
from visfeedback.training.settings_online import RewardChoice, Rollout
from visfeedback.types.records import Frozen

SHORTEST = 0.01
"""least part of the noise schedule to learn from: 10 of 1000 steps"""


class Model(Frozen):
    """The network that learns."""

    id: str = "shapes:sd"
    """hub id, local diffusers folder, single-file checkpoint, or a world such as `shapes:sd`"""
    adapter: str = ""
    """LoRA to start from; the reference is then the model with this LoRA. Empty: a fresh LoRA on the bare model"""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """precision of the frozen weights; what is trained stays fp32"""
    reference: Literal["start", "bare"] = "start"
    """what training is held to: the model as it starts, with `adapter`; or the model without it, in later rounds of a
    program that began there"""


class Data(Frozen):
    """What is learned that is there already, and how images and prompts are read. Methods that learn from pairs need
    `store` or `pairs`; those that learn from scored images take these, too, or `images`."""

    store: str = ""
    """SQLAlchemy URL of a feedback store, e.g. `sqlite:///prefs.db`"""
    pairs: str = ""
    """pairs file (jsonl, csv, parquet) with prompt, image_a, image_b, label"""
    images: str = ""
    """images to learn from one by one: a folder of `visfeedback generate` or with metadata.jsonl or NAME.txt, or a
    jsonl, csv or parquet file with prompt, image and, unless [reward] scores them, score"""
    real: str = ""
    """images that the model should go on being able to draw, as `images` without scores: what Lee et al. call
    pre-training data; as many of them as of the others are in every network call"""
    paths: str = ""
    """folder with samples.jsonl and trajectories/: denoising paths that were drawn before"""
    criterion: str = "overall"
    """which question's answers to learn from (store)"""
    ties: Literal["drop", "keep"] = "drop"
    """`keep` trains on ties too, as probability 0.5"""
    holdout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """share of prompts kept out of training; their loss and accuracy are logged beside the drift"""
    prompt_drop: float = Field(default=0.0, ge=0.0, le=1.0)
    """share of pairs shown with an empty prompt (the official code: 0.2)"""
    resolution: int = Field(default=0, ge=0)
    """side in pixels: images are resized to it by their short side and cropped in the centre; 0 = the model's own"""
    group: bool = False
    """pairs of one prompt come together and share their noise, so that an image in several of them is evaluated once:
    K images make K(K-1)/2 pairs and cost K evaluations; fewer prompts are then in a batch"""
    times: tuple[float, float] = (0.0, 1.0)
    """part of the noise schedule that training times are drawn from; 1 = pure noise. What a picture shows is decided at
    high times, how it looks in detail at low ones: `0.4 1.0` learns composition, `0.0 0.2` is for refiners"""
    flip: bool = False
    """mirror half of the pairs; wrong for prompts that say left or right"""

    @field_validator("times")
    @classmethod
    def _a_part(cls, times: tuple[float, float]) -> tuple[float, float]:
        low, high = times
        if min(low, 1 - high) < 0 or high - low < SHORTEST:
            raise ValueError(f"expected 0 <= low < high <= 1, at least {SHORTEST} apart, for example 0.4 1.0")
        return times


class Optim(Frozen):
    """AdamW and its schedule."""

    lr: float = Field(default=1e-4, gt=0)
    """peak learning rate"""
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """what follows the warmup; linear and cosine end at 0"""
    warmup: int = Field(default=0, ge=0)
    """steps in which the learning rate rises linearly from 0"""
    steps: int = Field(default=500, ge=1)
    """optimizer steps"""
    batch_size: int = Field(default=8, ge=1)
    """pairs, or images, in one network call of one process"""
    accumulate: int = Field(default=1, ge=1)
    """network calls per optimizer step; with paths, for each of their steps"""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's decoupled decay"""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays, each from 0 to below 1"""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's denominator constant"""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """gradients are scaled down to this norm; 0 = never"""
    eight_bit: bool = False
    """8-bit optimizer states (needs bitsandbytes and a GPU)"""

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("expected two numbers from 0 to below 1, for example 0.9 0.999")
        return betas


class Lora(Frozen):
    """The adapter that is trained (peft). When `model.adapter` brings its own shape, only `dropout` counts."""

    rank: int = Field(default=16, ge=1)
    """width of the update"""
    alpha: float = Field(default=0.0, ge=0)
    """scale, the update is multiplied by alpha / rank; 0 = rank"""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """names of the layers that get one"""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """dropout on the adapter's input while training"""


class Ema(Frozen):
    """Running average of the adapter; when on, it is what `adapter/` holds."""

    decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """0 = off"""
    every: int = Field(default=1, ge=1)
    """steps between updates"""


class Cache(Frozen):
    """Work that never changes is done once."""

    moments: bool = True
    """mean and std of every image's latents, so that sampling them stays as it was"""
    text: bool = True
    """every distinct prompt's encoding"""
    reference: bool = True
    """the reference's errors for every (pair, draw), when any is used twice (see `draws`): the reference network then
    never runs in the loop"""
    draws: int = Field(default=0, ge=0)
    """different (noise, t) a pair gets before they repeat; 0 = new ones in every epoch"""


class Engine(Frozen):
    """Seeds, devices, and what is written when."""

    seed: int = Field(default=0, ge=0, lt=2**53)
    """the order of pairs, their noise and the adapter's start follow from it"""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`"""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """autocast of the network calls; `fp16` needs a GPU"""
    gradient_checkpointing: bool = False
    """less memory, about a third more time"""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 = as the machine is set. Recorded and used again on resume, for results depend on it"""
    checkpoint_every: int = Field(default=100, ge=0)
    """steps between checkpoints; 0 = only at the end"""
    keep: int = Field(default=2, ge=1)
    """newest checkpoints that stay"""
    log_every: int = Field(default=1, ge=1)
    """steps that one row of metrics.jsonl averages"""
    drift_every: int = Field(default=50, ge=0)
    """steps between measures of the drift from the reference; 0 = only at the end"""
    stop_drift: float = Field(default=0.0, ge=0.0)
    """stop, as if all steps were done, once the measured drift is above this; 0 = never"""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """where metrics go besides metrics.jsonl (extra `trackers`)"""
    ema: Ema = Ema()
    cache: Cache = Cache()

    @model_validator(mode="after")
    def _measured_before_it_stops(self) -> Engine:
        if self.stop_drift and not self.drift_every:
            raise ValueError(
                f"stop_drift = {self.stop_drift:g} needs the drift on the way, and drift_every = 0 measures it only at "
                "the end; give drift_every, for example 10"
            )
        return self


class Eval(Frozen):
    """Pictures on the way, in `samples/`."""

    prompts: tuple[str, ...] = ()
    """what to draw; empty = the first prompts of the data"""
    count: int = Field(default=4, ge=0)
    """how many of the data's prompts; 0 and no `prompts` = no pictures"""
    every: int = Field(default=0, ge=0)
    """steps between previews; 0 = only before and after"""


class TrainSettings(Frozen):
    """A training run."""

    model: Model = Model()
    method: Frozen
    data: Data = Data()
    rollout: Rollout = Rollout()
    reward: RewardChoice = RewardChoice()
    optim: Optim = Optim()
    lora: Lora = Lora()
    engine: Engine = Engine()
    eval: Eval = Eval()


@cache
def settings_for(method: str) -> type[TrainSettings]:
    """``TrainSettings`` whose section `method` has the knobs of this method, besides its name.

    Raises InputError for a name that no file in `methods/` has.
    """
    knobs: Any = plugins.load("methods", method).Method
    only_this: Any = Literal[method]  # pyright: ignore[reportInvalidTypeForm]
    name = (only_this, Field(default=method, description="the file in methods/ that says what is learned"))
    section = create_model(knobs.__name__, __base__=knobs, __doc__=knobs.__doc__, name=name)
    default: Any = section()
    return create_model(
        "TrainSettings", __base__=TrainSettings, method=(section, default), __doc__=TrainSettings.__doc__
    )
