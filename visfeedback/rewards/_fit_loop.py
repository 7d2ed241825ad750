"""The loop that fits a reward to comparisons: Adam, a penalty for leaving the start, the best epoch by validation.

After every epoch a checkpoint is written whole; a fit that was interrupted goes on from it and ends bit for bit where
it would have ended (same machine and number of threads): the order of comparisons follows from seed and epoch, and
nothing else is random. May import: types.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visfeedback.plugins import InputError
from visfeedback.rewards._fit_data import Pairs, Split, batches
from visfeedback.rewards._fit_models import Learner
from visfeedback.rewards._preference_math import bradley_terry, davidson
from visfeedback.types.files import write_atomic
from visfeedback.types.protocols import Progress

FREE = {"scale", "log_tie"}
"""Single numbers that may go wherever they are best."""


@dataclass(frozen=True)
class Plan:
    """Knobs of the loop; see ``fit.Settings``."""

    ties: str
    epochs: int
    batch: int
    lr: float
    l2: float
    patience: int
    seed: int


@dataclass
class Position:
    """How far a fit is; epoch 0 is before any step."""

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    history: list[dict[str, float]] = field(default_factory=list)  # per epoch: train, validation


class Objective:
    """Loss of comparisons under a learner, with Davidson's tie parameter when it is asked for."""

    def __init__(self, learner: Learner, pairs: Pairs, ties: str) -> None:
        self._learner = learner
        self._pairs = pairs
        self.log_tie = nn.Parameter(torch.zeros(())) if ties == "davidson" else None

    def parameters(self) -> dict[str, nn.Parameter]:
        more = {} if self.log_tie is None else {"log_tie": self.log_tie}
        return {**self._learner.parameters(), **more}

    def gaps(self, rows: Tensor) -> Tensor:
        """Score of a minus score of b (B,); each different item is scored once."""
        pairs = self._pairs.at(rows)
        items, places = torch.cat([pairs.a, pairs.b]).unique(return_inverse=True)
        scores = self._learner(items)[places]
        return scores[: len(rows)] - scores[len(rows) :]

    def loss(self, rows: Tensor) -> Tensor:
        pairs, gap = self._pairs.at(rows), self.gaps(rows)
        if self.log_tie is not None:
            return davidson(gap, pairs.share, pairs.weight, self.log_tie)
        return bradley_terry(gap, pairs.share, pairs.weight)

    @torch.no_grad()
    def over(self, rows: Tensor, size: int) -> tuple[float, Tensor]:
        """Mean loss of ``rows`` and their gaps, computed ``size`` at a time."""
        parts = rows.split(size)
        weights = [float(self._pairs.weight[part].sum()) for part in parts]
        losses = [float(self.loss(part)) * weight for part, weight in zip(parts, weights, strict=True)]
        return sum(losses) / sum(weights), torch.cat([self.gaps(part) for part in parts])


def learn(objective: Objective, split: Split, plan: Plan, checkpoint: Path, progress: Progress) -> Position:
    """Train until validation stops getting better; the learner is left at its best epoch."""
    parameters = objective.parameters()
    start = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.Adam(list(parameters.values()), lr=plan.lr)
    position, best = _resume(checkpoint, parameters, optimizer)
    if not position.history:
        loss, _ = objective.over(split.validation, plan.batch)
        position, best = Position(best_loss=loss, history=[{"validation": loss}]), start
    with progress("fitting", plan.epochs) as advance:
        advance(position.epoch)
        while position.epoch < plan.epochs and position.epoch - position.best_epoch < plan.patience:
            train = _epoch(objective, split.train, plan, position.epoch, optimizer, start)
            loss, _ = objective.over(split.validation, plan.batch)
            position.epoch += 1
            position.history.append({"train": train, "validation": loss})
            if loss < position.best_loss:
                position.best_epoch, position.best_loss = position.epoch, loss
                best = {name: value.detach().clone() for name, value in parameters.items()}
            _save(checkpoint, position, parameters, best, optimizer)
            advance(1)
    _fill(parameters, best)
    return position


def _epoch(
    objective: Objective,
    rows: Tensor,
    plan: Plan,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    start: dict[str, Tensor],
) -> float:
    """One pass; returns the mean loss without the penalty."""
    total = 0.0
    for batch in batches(rows, plan.batch, plan.seed, epoch):
        loss = objective.loss(batch)
        moved = {name: value - start[name] for name, value in objective.parameters().items() if name not in FREE}
        penalty = torch.stack([value.square().sum() for value in moved.values()]).sum()
        optimizer.zero_grad()
        (loss + plan.l2 / 2 * penalty).backward()
        optimizer.step()
        total += float(loss.detach()) * len(batch)
    return total / len(rows)


def _fill(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _save(
    path: Path,
    position: Position,
    parameters: dict[str, nn.Parameter],
    best: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    now = {name: value.detach() for name, value in parameters.items()}
    state = {"position": asdict(position), "now": now, "best": best,
             "optimizer": optimizer.state_dict()}  # fmt: skip
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def _resume(
    path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[Position, dict[str, Tensor]]:
    """Where the checkpoint was; an empty position when there is none."""
    if not path.is_file():
        return Position(), {}
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError):
        raise InputError(f"{path} is damaged; remove it to fit from the start") from None
    _fill(parameters, state["now"])
    optimizer.load_state_dict(state["optimizer"])
    return Position(**state["position"]), state["best"]
