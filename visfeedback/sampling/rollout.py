"""Sampling with memory: denoising paths with the log-probability of each step, and those of a path under other weights.

Black et al. 2023 (DDPO): denoising is a chain of Gaussian steps, here the process's own stochastic step (DDIM with
eta > 0 for DDPM). A path is a function of (weights, prompt, seed): its noise comes from the image's own generator, in
the order in which a stock pipeline draws it. Latents stay in float32 whatever the network's precision, unless `half`
asks for less; then every step is rounded before its log-probability is taken, so stored paths keep exact ones.
Guidance: pred = u + g (c - u); the unconditional branch u never has a graph, so training pays for one branch.
Images without a path may be drawn by any other scheduler of diffusers, through the pipeline's own call.
May import: types, diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visfeedback.diffusion.gaussian import draw, log_prob
from visfeedback.plugins import InputError
from visfeedback.sampling.samplers import use_sampler
from visfeedback.types.batches import Condition, Rollouts
from visfeedback.types.protocols import Backbone, Process

ROUNDING = 1e-6
"""times are float32 and bounds are not: 0.8 is 0.800000012 there"""


@dataclass(frozen=True)
class Walk:
    """How paths are drawn."""

    steps: int
    guidance: float = 1.0
    eta: float = 1.0
    """0 = deterministic, without log-probabilities; 1 = as much noise as the process itself has"""
    random_times: tuple[float, float] = (0.0, 1.0)
    """low < t <= high: steps from there are random by `eta`, the others deterministic (MixGRPO, arXiv 2507.21802)"""
    half: bool = False
    """whether latents of the path are kept in fp16"""
    sampler: str = ""
    """another scheduler, by `draw_with`; empty = the process's own steps"""


@dataclass(frozen=True)
class Paths:
    """B denoising paths on the CPU."""

    latents: Tensor  # (B, T + 1, C, h, w) with memory, else (B, 1, C, h, w): the image alone
    t: Tensor  # (T + 1,)
    log_prob: Tensor  # (B, T) float32; 0 where a step has no noise

    @property
    def images(self) -> Tensor:
        """(B, C, h, w) clean latents, float32."""
        return self.latents[:, -1].float()


def guided(
    backbone: Backbone, x_t: Tensor, t: Tensor, condition: Condition, unconditional: Condition | None, guidance: float
) -> Tensor:
    """The guided prediction (B, ...); without a graph through the unconditional branch. None or 1 = no guidance."""
    if unconditional is None or guidance == 1:
        return backbone.predict(x_t, t, condition)
    with torch.no_grad():
        without = backbone.predict(x_t, t, unconditional)
    return without + guidance * (backbone.predict(x_t, t, condition) - without)


def noisy_steps(process: Process, walk: Walk) -> list[int]:
    """Which steps draw noise, so have a log-probability: none for eta 0; not the last one where it ends at alpha 1."""
    t, here = process.times(walk.steps), torch.zeros((walk.steps, 1))
    _, std = process.step(here, here, t[:-1], t[1:], walk.eta)
    wanted = within(t, walk.random_times)
    return [k for k, value in enumerate(std.tolist()) if value > 0 and wanted[k]]


def within(t: Tensor, part: tuple[float, float]) -> list[bool]:
    """Which of the times (T,) lie in low < t <= high; one that differs from a bound by rounding is that bound."""
    low, high = part
    return [low + ROUNDING < value <= high + ROUNDING for value in t.tolist()]


@torch.no_grad()
def roll(
    backbone: Backbone, condition: Condition, unconditional: Condition | None, seeds: Sequence[int],
    shape: Sequence[int], walk: Walk, starts: Sequence[int] | None = None, memory: bool = True,
) -> Paths:  # fmt: skip
    """Draw one path for each seed with the weights in use.

    condition, unconditional (B); shape (C, h, w). ``starts``: seeds of the initial noise, when it is shared; the
    image's own generator then begins with the first step. Put a network with dropout into eval mode first.
    """
    if walk.sampler and memory:
        raise InputError(f"{walk.sampler} has no log-probabilities to learn from; leave out --rollout.sampler")
    device, process = backbone.device, backbone.process
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    begin = generators if starts is None else [torch.Generator("cpu").manual_seed(seed) for seed in starts]
    kept = torch.float16 if walk.half else torch.float32
    x, t = _noise(begin, shape).to(device).to(kept), process.times(walk.steps)
    condition, unconditional = condition.to(device), None if unconditional is None else unconditional.to(device)
    noisy, path, log_probs = set(noisy_steps(process, walk)), [x.cpu()], []
    wanted = within(t, walk.random_times)
    for k in range(walk.steps):
        now, then = (t[i].expand(len(seeds)).to(device) for i in (k, k + 1))
        prediction = guided(backbone, x.float(), now, condition, unconditional, walk.guidance)
        eta = walk.eta if wanted[k] else 0.0
        mean, std = process.step(prediction, x.float(), now, then, eta)
        noise = _noise(generators, shape).to(device) if eta > 0 else torch.zeros_like(mean)
        x = draw(mean, std, noise).to(kept)
        log_probs.append(log_prob(x, mean, std).cpu() if k in noisy else torch.zeros(len(seeds)))
        path = [*path, x.cpu()] if memory else [x.cpu()]
    return Paths(torch.stack(path, dim=1), t, torch.stack(log_probs, dim=1))


@torch.no_grad()
def draw_with(
    backbone: Any, prompts: Sequence[str], negatives: Sequence[str], seeds: Sequence[int], walk: Walk,
    starts: Sequence[int] | None = None,
) -> Paths:  # fmt: skip
    """Images of ``walk.sampler`` as a stock pipeline draws them, without their paths; ``starts`` as in ``roll``.

    ``negatives`` has a text for each prompt. Raises InputError for a sampler that does not fit the pipeline.
    """
    pipe, shape = backbone.pipe, backbone.latent_shape
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    call: dict[str, Any] = {"num_inference_steps": walk.steps, "guidance_scale": walk.guidance}
    if starts is not None:
        begin = [torch.Generator("cpu").manual_seed(seed) for seed in starts]
        call["latents"] = _noise(begin, shape).to(backbone.device, backbone.dtype)
    if any(negatives):
        call["negative_prompt"] = list(negatives)
    with use_sampler(pipe, walk.sampler):
        drawn = pipe(prompt=list(prompts), generator=generators, output_type="latent", **call).images
    if tuple(drawn.shape[1:]) != shape:
        raise InputError(f"{type(pipe).__name__} draws packed latents; leave out --rollout.sampler for this model")
    latents = drawn.float().cpu().unsqueeze(1).to(torch.float16 if walk.half else torch.float32)
    return Paths(latents, backbone.process.times(walk.steps), torch.zeros(len(seeds), walk.steps))


def log_probs(backbone: Backbone, batch: Rollouts) -> Tensor:
    """(B, T) log-probabilities of the batch's steps under the weights in use, float32, with a graph to them."""
    return _steps(backbone, batch)[0]


def log_probs_and_means(backbone: Backbone, batch: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
    """As ``log_probs``, with means (B, T, C, h, w) and standard deviations (B, T) of the steps."""
    return _steps(backbone, batch)


def _steps(backbone: Backbone, batch: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of all paths in one network call."""
    rows, steps = batch.log_prob.shape
    x, after = (part.flatten(0, 1).float() for part in (batch.latents[:, :-1], batch.latents[:, 1:]))
    now, then = batch.t[:, :-1].flatten(), batch.t[:, 1:].flatten()
    condition, without = (_each(part, steps) for part in (batch.condition, batch.unconditional))
    assert condition is not None
    prediction = guided(backbone, x, now, condition, without, batch.guidance)
    mean, std = backbone.process.step(prediction, x, now, then, batch.eta)
    found = log_prob(after, mean, std).view(rows, steps)
    return found, mean.view(rows, steps, *mean.shape[1:]), std.view(rows, steps)


def reach(process: Process, batch: Rollouts) -> Tensor:
    """(B, T) by how many standard deviations each step's mean moves when the prediction moves by 1 everywhere.

    The gradient of a step's log-probability to the prediction is its noise times this: on `shapes:sd`, ten steps, 0.018
    at the first and 0.62 at the seventh step, so that of a path's steps the less noisy ones are learned.
    """
    now, then = batch.t[:, :-1].flatten(), batch.t[:, 1:].flatten()
    nothing = torch.zeros_like(now)
    at_0, std = process.step(nothing, nothing, now, then, batch.eta)
    at_1, _ = process.step(torch.ones_like(now), nothing, now, then, batch.eta)
    return ((at_1 - at_0).abs() / std).view(batch.log_prob.shape)


@torch.no_grad()
def path_log_probs(backbone: Backbone, whole: Rollouts, steps: Sequence[int]) -> Tensor:
    """(B, T) log-probabilities of whole paths under the weights in use, step by step; 0 for steps not in ``steps``."""
    found = torch.zeros(whole.log_prob.shape)
    for k in steps:
        found[:, k] = log_probs(backbone, piece(whole, k).to(backbone.device))[:, 0].cpu()
    return found


def piece(whole: Rollouts, k: int) -> Rollouts:
    """Step ``k`` of every path."""
    here = slice(k, k + 1)
    changed: dict[str, Any] = {
        "latents": whole.latents[:, k : k + 2], "t": whole.t[:, k : k + 2], "log_prob": whole.log_prob[:, here],
        "reference_log_prob": None if whole.reference_log_prob is None else whole.reference_log_prob[:, here],
    }  # fmt: skip
    return Rollouts(**{**vars(whole), **changed})


def _each(condition: Condition | None, times: int) -> Condition | None:
    """Every row as often as its path has steps."""
    if condition is None or times == 1:
        return condition
    return condition.rows(torch.arange(len(condition.tokens)).repeat_interleave(times).to(condition.tokens.device))


def _noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """(B, C, h, w), row i from generator i in the shape in which diffusers draws it."""
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])
