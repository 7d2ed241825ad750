"""DDPM: x_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps with a discrete schedule a_1 > ... > a_T, predicting eps or v.

Ho et al. 2020 (the process), Salimans & Ho 2022 (v = sqrt(a) eps - sqrt(1 - a) x0), Song et al. 2021 (the DDIM step).
Discrete step i of T is t = (i + 1) / T and t = 0 is no noise. Left out: sample prediction, clipping, thresholding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from visfeedback.plugins import InputError

PredictionType = Literal["epsilon", "v_prediction"]
Spacing = Literal["leading", "linspace", "trailing"]


@dataclass(frozen=True)
class DDPM:
    """A discrete noising process; the schedule stays in float32 whatever the tensors' precision."""

    sampler: ClassVar[str] = "DDIMScheduler"

    alphas_cumprod: Tensor  # (T,) float32, a_1 ... a_T
    prediction_type: PredictionType = "epsilon"
    final_alpha: float = 1.0
    """a at t = 0 in `step`: the sampler's own (1, or a_1 when `set_alpha_to_one=False`)"""
    spacing: Spacing = "leading"
    """how `times` spreads over the schedule, in diffusers' words"""
    offset: int = 0
    """added to the discrete steps of `leading`"""

    @classmethod
    def of(cls, scheduler: Any) -> DDPM:
        """Read a diffusers scheduler. Raises InputError for a prediction type that is not eps or v."""
        kind: Any = getattr(scheduler.config, "prediction_type", "epsilon")
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if kind not in get_args(PredictionType) or alphas is None:
            name = type(scheduler).__name__
            raise InputError(f"scheduler {name} with prediction_type {kind!r}: expected epsilon or v_prediction (DDPM)")
        spacing: Any = getattr(scheduler.config, "timestep_spacing", "leading")
        offset = int(getattr(scheduler.config, "steps_offset", 0))
        return cls(alphas.float().cpu(), kind, float(getattr(scheduler, "final_alpha_cumprod", 1.0)), spacing, offset)

    @property
    def steps(self) -> int:
        """T, the number of discrete steps."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> DDPM:
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def index(self, t: Tensor) -> Tensor:
        """(B,) long: the discrete step at ``t``, in 0 ... T - 1; -1 where t is 0. Times outside [0, 1] are clamped."""
        return (t.float() * self.steps).round().long().clamp(0, self.steps) - 1

    def time(self, index: Tensor) -> Tensor:
        """(B,) float32: the time of discrete steps, ``(i + 1) / T``; the inverse of ``index``."""
        return (index.float() + 1) / self.steps

    def sample_t(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) times of steps drawn uniformly from 0 ... T - 1, on the generator's device."""
        return self.time(torch.randint(self.steps, (count,), generator=generator, device=generator.device))

    def times(self, steps: int) -> Tensor:
        """(steps + 1,) float32, falling to 0: the stops of diffusers' DDIM, a step from each to the next one.

        Exactly its own where it steps to its own next stop: `leading` always, `trailing` when steps divides T.
        """
        if not 1 <= steps <= self.steps:
            raise InputError(f"{steps} denoising steps; this model's schedule has {self.steps}: expected 1 to that")
        if self.spacing == "linspace":
            index = torch.linspace(0, self.steps - 1, steps, dtype=torch.float64).round().flip(0)
        elif self.spacing == "trailing":
            index = (self.steps - torch.arange(steps, dtype=torch.float64) * (self.steps / steps)).round() - 1
        else:
            index = torch.arange(steps - 1, -1, -1) * (self.steps // steps) + self.offset
        index = index.long().clamp(max=self.steps - 1)
        return torch.cat([self.time(index), torch.zeros(1)])

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t (B, ...) in the precision of ``x0``; exactly ``x0`` where t = 0."""
        signal, sigma = self._scales(t, x0)
        return (signal * x0 + sigma * noise).to(x0.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network predicts: the noise, or v = sqrt(a) noise - sqrt(1 - a) x0."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._scales(t, x0)
        return (signal * noise - sigma * x0).to(x0.dtype)

    def to_x0(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a prediction implies, in the precision of ``x_t``."""
        return self._split(pred, x_t, t)[0].to(x_t.dtype)

    def step(self, pred: Tensor, x_t: Tensor, t: Tensor, t_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """DDIM from ``t`` to ``t_next`` < t: mean (B, ...) and standard deviation (B,), both at least float32.

        sigma = eta sqrt((1 - a_next) / (1 - a_t) (1 - a_t / a_next)); eta 0 is deterministic, eta 1 is DDPM.
        """
        x0, eps = self._split(pred, x_t, t)
        a_t, a_next = self._alpha(t, 1.0), self._alpha(t_next, self.final_alpha)
        variance = (1 - a_next) / (1 - a_t) * (1 - a_t / a_next)
        std = eta * variance.clamp(min=0).sqrt()
        direction = (1 - a_next - std**2).clamp(min=0).sqrt()  # rounding can push it just below 0
        return _column(a_next.sqrt(), x0) * x0 + _column(direction, x0) * eps, std

    def _split(self, pred: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The (x0, eps) that together make ``x_t`` and fit the prediction."""
        signal, sigma = self._scales(t, x_t)
        if self.prediction_type == "epsilon":
            eps = pred.to(signal.dtype)
            return (x_t - sigma * eps) / signal, eps
        return signal * x_t - sigma * pred, signal * pred + sigma * x_t

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), shaped to multiply ``like``, float32 or the wider type of ``like``."""
        alpha = self._alpha(t, 1.0).to(torch.promote_types(like.dtype, torch.float32))
        return _column(alpha.sqrt(), like), _column((1 - alpha).sqrt(), like)

    def _alpha(self, t: Tensor, at_zero: float) -> Tensor:
        """(B,) a_t, with ``at_zero`` where t = 0."""
        schedule = self.alphas_cumprod.to(t.device)
        return torch.cat([schedule.new_tensor([at_zero]), schedule])[self.index(t) + 1]


def _column(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
