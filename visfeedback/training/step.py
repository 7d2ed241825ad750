"""One optimizer step on any number of processes, and what it measured.

May import: types, plugins, and accelerate.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from visfeedback.plugins import InputError
from visfeedback.sampling.generate import derive_seed
from visfeedback.training.optimizer import learning_rate
from visfeedback.training.policy import Average
from visfeedback.training.settings import TrainSettings
from visfeedback.types.protocols import Context


class Loss(nn.Module):
    """The method's loss as a module, so that accelerate can wrap it: autocast goes around it, and distributed training
    sees the trained parameters and nothing else. The method itself knows nothing of that."""

    def __init__(self, method: Any, backbone: Any) -> None:
        super().__init__()
        self.method, self.backbone = method, backbone
        self.trained = nn.ParameterList(backbone.parameters())

    def forward(self, batch: Any, ctx: Context) -> tuple[Tensor, dict[str, float]]:
        return self.method.loss(self.backbone, batch, ctx)


class NotFinite(InputError):
    """The loss is no number any more; the weights are still those before this step."""


@dataclass
class Stepper:
    """Everything an optimizer step touches."""

    settings: TrainSettings
    accelerator: Accelerator
    backbone: Any
    loss: nn.Module  # a wrapped `Loss`
    optimizer: Any  # wrapped
    batches: Any  # see `sources.Batches`
    state: dict[str, Any]  # the method's own, saved in checkpoints
    average: Average | None = None
    reward: Any = None  # for methods that ask it themselves
    watch: Any = None  # the same, of the one that is only logged

    def step(self, step: int, stop: Callable[[], bool]) -> tuple[dict[str, float], bool]:
        """Optimizer step ``step`` (0 = first); metrics averaged over processes, and whether any process must stop.

        Raises NotFinite before anything changed when the loss or, without a loss scaler, the gradient is no number.
        """
        started, optim = time.perf_counter(), self.settings.optim
        rows = [self.backward(step, micro) for micro in range(self.batches.calls)]
        metrics, stopping = self._mean(rows, stop())
        metrics |= self.state.get("metrics", {})
        metrics["grad_norm"] = self._clip()
        self._check(metrics)
        rate = learning_rate(optim, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None and (step + 1) % self.settings.engine.ema.every == 0:
            self.average.update(self.backbone.named_parameters())
        return metrics | {"lr": rate, "step_seconds": time.perf_counter() - started}, stopping

    def backward(self, step: int, micro: int) -> dict[str, float]:
        """Add the gradient of network call ``micro`` of a step, as its share of the step; its metrics."""
        calls, rank = self.batches.calls, self.accelerator.process_index
        last = micro == calls - 1
        batch = self.batches.batch(step, micro, rank).to(self.backbone.device)
        alone = contextlib.nullcontext() if last else self.accelerator.no_sync(self.loss)
        with alone:
            loss, metrics = self.loss(batch, self.context(step, rank, micro))
            loss = loss * getattr(batch, "share", 1.0)
            self.accelerator.backward(loss / calls)
        return {"loss": loss.item(), **metrics}

    def context(self, step: int, rank: int, micro: int = 0) -> Context:
        """What the method is handed: its random numbers follow from the network call."""
        seed = derive_seed(self.settings.engine.seed, f"method-{rank}" + (f"-{micro}" if micro else ""), step)
        generator = torch.Generator().manual_seed(seed)
        return Context(generator, step, self.reward, self.watch, self._over_processes, self.state)

    def _over_processes(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(value.clone(), "mean")  # pyright: ignore[reportReturnType]

    def _mean(self, rows: list[dict[str, float]], stop: bool) -> tuple[dict[str, float], bool]:
        """Averages over network calls and processes. Whether to stop travels along, so that all stop at one step."""
        averages = [sum(row[name] for row in rows) / len(rows) for name in rows[0]]
        if self.accelerator.num_processes > 1:
            together = torch.tensor([*averages, float(stop)], device=self.accelerator.device)
            *averages, asked = self._over_processes(together).tolist()
            stop = asked > 0
        return dict(zip(rows[0], averages, strict=True)), stop

    def _clip(self) -> float:
        """The norm of the gradient before clipping."""
        limit = self.settings.optim.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(list(self.backbone.parameters()), limit)
        return float(norm) if norm is not None else math.nan

    def _check(self, metrics: dict[str, float]) -> None:
        scaled = self.accelerator.scaler is not None  # a loss scaler skips infinite gradients by itself
        wrong = "loss" if not math.isfinite(metrics["loss"]) else "grad_norm"
        if not math.isfinite(metrics["loss"]) or not (scaled or math.isfinite(metrics["grad_norm"])):
            self.optimizer.zero_grad()
            raise NotFinite(f"{wrong} is {metrics[wrong]}")
