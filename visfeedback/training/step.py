"""One optimizer step on any number of processes, and what it measured.

May import: types, plugins, and accelerate.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
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
from visfeedback.training.scorer import Unscored
from visfeedback.training.settings import TrainSettings
from visfeedback.training.together import agreed, gather_over
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
    torn: bool = False  # a failure has left the weights between two steps

    def step(self, step: int, stop: Callable[[], bool]) -> tuple[dict[str, float], bool]:
        """Optimizer step ``step`` (0 = first); metrics averaged over processes, and whether any process must stop.

        Raises NotFinite before anything changed when the loss or, without a loss scaler, the gradient is no number.
        """
        started, before = time.perf_counter(), dict(self.state)  # its values are replaced, never changed
        try:
            metrics, stopping = self._gradient(step, stop)
        except Exception:
            self.optimizer.zero_grad()
            self.state.clear()
            self.state.update(before)  # a new round is drawn, and weighed, again when the run goes on
            raise
        rate = self._learn(step)
        return metrics | {"lr": rate, "step_seconds": time.perf_counter() - started}, stopping

    def _gradient(self, step: int, stop: Callable[[], bool]) -> tuple[dict[str, float], bool]:
        rows = [self.backward(step, micro) for micro in range(self.batches.calls)]
        metrics, stopping = self._mean(rows, stop())
        metrics |= self.state.get("metrics", {})
        metrics["grad_norm"] = self._clip()
        self._check(metrics)
        if step == 0 and metrics["grad_norm"] == 0 and self._asks:
            self._nothing(metrics["loss"])
        return metrics, stopping

    def _learn(self, step: int) -> float:
        """Change the weights; the learning rate."""
        self.torn = True
        rate = learning_rate(self.settings.optim, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None and (step + 1) % self.settings.engine.ema.every == 0:
            self.average.update(self.backbone.named_parameters())
        self.torn = False
        return rate

    @property
    def _asks(self) -> bool:
        """Whether the loss asks the reward."""
        method: Any = self.settings.method
        return method.eats == "prompts"

    def backward(self, step: int, micro: int) -> dict[str, float]:
        """Add the gradient of network call ``micro`` of a step, as its share of the step; its metrics."""
        calls, rank = self.batches.calls, self.accelerator.process_index
        last = micro == calls - 1
        batch = self.batches.batch(step, micro, rank).to(self.backbone.device)
        alone = contextlib.nullcontext() if last else self.accelerator.no_sync(self.loss)
        with alone:
            loss, metrics = self._asked(batch, self.context(step, rank, micro))
            loss = loss * getattr(batch, "share", 1.0)
            self.accelerator.backward(loss / calls)
        return {"loss": loss.item(), **metrics}

    def _asked(self, batch: Any, ctx: Context) -> tuple[Tensor, dict[str, float]]:
        """The loss; where a reward may fail in it, all processes hear of that before they share gradients."""
        if not self._asks or self.accelerator.num_processes == 1:
            return self.loss(batch, ctx)
        return agreed(lambda: self.loss(batch, ctx), gather_over(self.accelerator))

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
            raise NotFinite(f"{wrong} is {metrics[wrong]}")

    def _nothing(self, loss: float) -> None:
        """No image of the first step has a gradient: an error, unless the method finds them all good enough."""
        name = self.settings.reward.name
        if loss == 0:
            warnings.warn(
                f"the first step teaches nothing: to the method every image is good enough, as {name} scores it",
                stacklevel=2,
            )
            return
        raise Unscored(
            f"the gradient of the first step is 0: {name} does not depend on the image for these prompts, so nothing "
            "can be learned from it; choose another --reward.name"
        )
