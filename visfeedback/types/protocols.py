"""What a process, a backbone, a method, a reward and a judge must offer. Structural types: nobody inherits from these.

Shapes and time convention: see ``visfeedback.types.batches``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from visfeedback.types.batches import Condition
from visfeedback.types.records import Feedback, Origin, Prompt, Sample, Verdict

Weights = Literal["policy", "reference", "old"]


class Process(Protocol):
    """A noising process: pure functions of tensors. ``t`` is (B,) in [0, 1], 1 = pure noise."""

    sampler: ClassVar[str]
    """class name of the diffusers scheduler whose step ``step`` is; goes into ``Sample.sampler``"""

    def sample_t(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) training times, drawn as this family is trained."""
        ...

    def times(self, steps: int) -> Tensor:
        """(steps + 1,) float32, falling, the last one 0: where this family's sampler stops on the way."""
        ...

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to predict."""
        ...

    def to_x0(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...

    def step(self, pred: Tensor, x_t: Tensor, t: Tensor, t_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Mean (B,C,h,w) and standard deviation (B,) of x at ``t_next`` given ``x_t``."""
        ...


class Backbone(Protocol):
    """One diffusers family behind one small interface."""

    process: Process

    @property
    def device(self) -> torch.device: ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents of the images that the network was made for."""
        ...

    def encode_text(self, prompts: Sequence[str]) -> Condition: ...

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B,3,H,W) in [0,1] -> mean and standard deviation (B,C,h,w) of the scaled latents."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B,C,h,w) -> pixels (B,3,H,W) in [0,1]."""
        ...

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's own prediction (B,C,h,w), compared with ``process.target``."""
        ...

    def weights(self, which: Weights) -> AbstractContextManager[None]:
        """Inside the block ``predict`` uses these weights."""
        ...

    def copy_weights(self, source: Weights, target: Weights) -> None: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The trainable parameters of the policy."""
        ...


@dataclass
class Context:
    """What the loop hands to a method besides the batch."""

    generator: torch.Generator
    step: int = 0
    reward: Reward | None = None
    watch: Callable[[Tensor, Sequence[str]], Tensor] | None = None
    """(B, 3, H, W) in [0, 1] and prompts -> (B,) scores of the reward that is only logged"""
    mean: Callable[[Tensor], Tensor] = lambda value: value  # mean over ranks
    state: dict[str, Any] = field(default_factory=dict)  # saved in checkpoints


class Method(Protocol):
    """A frozen config with a loss.

    What it may have besides, and what follows: ``reference(backbone, batch)`` (pairs: constants worth caching);
    ``weigh(scores (N,), group (N,), prompts, state) -> (N,)`` (scored, rollouts: called once for a whole set of scored
    images, before any batch of it; the result is ``batch.weight``, what it puts into ``state["metrics"]`` is logged; it
    raises ``methods._weights.NothingToLearn`` when these scores prefer no image); ``compares`` (False: equal scores
    teach something, too); ``kept_share(per_prompt)`` (scored: share of a round's images that `weigh` gives a weight);
    ``reads_reference`` (rollouts: batches bring ``reference_log_prob``); ``whole_groups`` (batches hold all images of
    a prompt); ``least_group`` (so many images of a prompt at least); ``needs_all`` (rollouts: paths of weight 0, too,
    which are left out otherwise); ``needs_gradient`` (of the reward).
    """

    eats: ClassVar[Literal["pairs", "scored", "rollouts", "prompts"]]

    def loss(self, backbone: Backbone, batch: Any, ctx: Context) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss with a graph to ``backbone.parameters()``, and metrics to log."""
        ...


class Reward(Protocol):
    """A scorer of images against prompts; higher is better, native units.

    Work is split so that nothing is done twice: ``preprocess`` once per image and ``preprocessing``, ``encode_images``
    once per image and ``encoder``, ``encode_texts`` once per prompt, and ``combine`` for every pair.

    A reward whose answers come from elsewhere says so by its ``origin``: no ``checkpoint_sha256``, and either an
    address in ``model`` (`http://...`) or an empty ``dtype``, for nothing is computed here. Training then waits for
    answers: when it raises, it is asked again.

    What it may have besides: ``failures``, (image row, prompt column) of the last ``combine`` -> why there is no score,
    which is then NaN; ``unfit(prompt) -> str``, why no image of this prompt can have a score, empty when it can, so
    that training need not draw any; ``pairs_at_once``, so many pairs of one ``combine`` in a scoring run.
    """

    name: str
    """as it was asked for: `hpsv2`, `aesthetic:v1`"""
    range: tuple[float, float]
    """bounds of the score; infinite where there is none"""
    differentiable: bool
    reads_prompt: bool
    """False: the same score for every prompt"""
    preprocessing: str
    """identity of the preprocessing, part of every cache key; rewards with the same one share its result"""
    encoder: str
    """identity of what ``encode_images`` computes (weights included); rewards with the same encoder, preprocessing
    and dtype share features"""
    origin: Origin

    def preprocess(self, image: Image) -> Tensor:
        """One image exactly as published -> (C,H,W); H and W may depend on the image."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Preprocessed images of one size (N,C,H,W) -> features, first axis N."""
        ...

    def encode_texts(self, prompts: Sequence[str]) -> Tensor | list[Any]:
        """One row or item per prompt, so that they can be picked and repeated."""
        ...

    def combine(
        self, images: Tensor, texts: Tensor | list[Any], pairing: Literal["paired", "matrix"] = "paired"
    ) -> Tensor:
        """(B,) when paired; (N images, P prompts) for the full matrix. float32."""
        ...


class DifferentiableReward(Reward, Protocol):
    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,3,H,W) in [0,1] -> (B,) with a gradient to the pixels."""
        ...


class Judge(Protocol):
    """Somebody who compares images of one prompt."""

    name: str
    """`verifier:shapes`, `human:ada`, ...: goes into ``Feedback.judge``"""

    def compare(self, prompt: Prompt, samples: Sequence[Sample], images: Sequence[Image]) -> Feedback: ...


class Verifier(Protocol):
    """A judge that also knows right from wrong."""

    def verify(self, prompt: str, image: Image) -> Verdict: ...


class Progress(Protocol):
    """How a room says how far it is without knowing about screens.

    ``with progress("drawing", 64) as advance: advance(8)``
    """

    def __call__(self, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]: ...


@contextmanager
def silent(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """The ``Progress`` that says nothing."""
    yield lambda count: None
