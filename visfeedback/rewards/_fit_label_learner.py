"""What learns from labels, and how well it does: the tensors of a fit to good and bad labels. See ``_fit_labels.py``.

May import: types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from visfeedback.rewards._fit_data import Split, batches
from visfeedback.rewards._fit_label_head import LabelHead
from visfeedback.rewards._fit_models import Survey, joined
from visfeedback.rewards._preference_math import Share, design_effect, wilson
from visfeedback.types.protocols import Progress
from visfeedback.types.records import Frozen


class Labelled(NamedTuple):
    """An image and how good it is for its prompt."""

    prompt: str
    image: Path
    good: float  # in [0, 1]; above one half counts as good
    weight: float = 1.0


class LabelSettings(Frozen):
    """What is fitted to labels, and how."""

    base: str = "shapes_clip"
    """the reward whose features are read: NAME[:VARIANT][@PATH_OR_HUB]; one vector for an image and for a prompt"""
    hidden: int = Field(default=1024, ge=1)
    """width of the two hidden layers"""
    auxiliary: float = Field(default=0.5, ge=0)
    """weight of the prompt classification; 0 leaves it out"""
    temperature: float = Field(default=0.1, gt=0)
    """T of the prompt classification; r lies in [0, 1], so a small one makes it tell prompts apart"""
    distractors: int = Field(default=9, ge=1)
    """wrong prompts beside the right one in the prompt classification"""
    epochs: int = Field(default=100, ge=1)
    """most passes over the labels"""
    patience: int = Field(default=15, ge=1)
    """passes without a lower validation error before it stops"""
    batch: int = Field(default=64, ge=1)
    """labels of a step"""
    lr: float = Field(default=3e-4, gt=0)
    """AdamW's step"""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's decay"""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """in the hidden layers, while learning"""
    validation: float = Field(default=0.2, gt=0, lt=1)
    """share of the prompts that say when to stop"""
    test: float = Field(default=0.2, gt=0, lt=1)
    """share of the prompts that are only measured on"""
    seed: int = Field(default=0, ge=0)
    """the split, the order of labels, the perturbations and the start follow from it"""
    device: str = "cpu"
    """cpu, cuda, ..."""


@dataclass(frozen=True)
class Labels:
    """All labels and every prompt that is asked about; the items are the labelled images, each with its own prompt."""

    rows: tuple[Labelled, ...]
    others: tuple[tuple[str, ...], ...]  # for each row

    @cached_property
    def images(self) -> list[Path]:
        return list(dict.fromkeys(row.image for row in self.rows))

    @cached_property
    def prompts(self) -> list[str]:
        own = dict.fromkeys(row.prompt for row in self.rows)
        return list(own | dict.fromkeys(other for others in self.others for other in others))

    @cached_property
    def items(self) -> list[tuple[int, int]]:
        image, prompt = ({name: n for n, name in enumerate(names)} for names in (self.images, self.prompts))
        return [(image[row.image], prompt[row.prompt]) for row in self.rows]

    @cached_property
    def asked(self) -> Tensor:
        """(N, 1 + distractors) places of the right prompt and its perturbations; -1 where there are fewer."""
        prompt, width = {name: n for n, name in enumerate(self.prompts)}, max(map(len, self.others), default=0)
        rows = [
            [prompt[row.prompt], *(prompt[other] for other in others), *[-1] * (width - len(others))]
            for row, others in zip(self.rows, self.others, strict=True)
        ]
        return torch.tensor(rows)


class LabelLearner:
    """A head, and what it learns from."""

    def __init__(self, data: Labels, found: Survey, settings: LabelSettings) -> None:
        assert found.texts is not None
        self.settings, self._scores = settings, found.scores
        self._images = found.features[[image for image, _ in data.items]]  # (N, D)
        self._texts, self._asked = found.texts, data.asked
        self._good = torch.tensor([row.good for row in data.rows])
        self._weight = torch.tensor([row.weight for row in data.rows])
        self._prompts = [row.prompt for row in data.rows]
        self.head = LabelHead(3 * found.features.shape[1], settings.hidden, settings.dropout, settings.seed)

    def learn(self, parts: Split, progress: Progress) -> dict[str, Any]:
        """Train until the validation error stops falling; the head is left at its best pass."""
        plan = self.settings
        self.head.start(self._features(parts.train, self._asked[parts.train, 0]))
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
        best, best_epoch, history = self._state(), 0, [{"validation": self._error(parts.validation)}]
        with progress("fitting", plan.epochs) as advance, torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)  # dropout
            for epoch in range(1, plan.epochs + 1):
                self.head.train()
                for batch in batches(parts.train, plan.batch, plan.seed, epoch):
                    optimizer.zero_grad()
                    self.loss(batch).backward()
                    optimizer.step()
                history.append({"validation": self._error(parts.validation)})
                if history[-1]["validation"] < min(row["validation"] for row in history[:-1]):
                    best, best_epoch = self._state(), epoch
                advance(1)
                if epoch - best_epoch >= plan.patience:
                    break
        self.head.load_state_dict(best)
        self.head.eval()
        return {"epochs": len(history) - 1, "best_epoch": best_epoch, "history": history}

    def loss(self, rows: Tensor) -> Tensor:
        """Squared error, and the prompt classification of the good images among the rows."""
        weight, good = self._weight[rows], self._good[rows]
        asked = self._asked[rows] if self.settings.auxiliary else self._asked[rows, :1]
        scores = self._ask(rows, asked)  # (B, 1 + distractors)
        loss = (weight * (good - scores[:, 0]).square()).sum() / weight.sum()
        if self.settings.auxiliary and asked.shape[1] > 1 and bool((good > 0.5).any()):
            logits = (scores / self.settings.temperature).masked_fill(asked < 0, -torch.inf)[good > 0.5]
            right = torch.zeros(len(logits), dtype=torch.long)
            loss = loss + self.settings.auxiliary * F.cross_entropy(logits, right)
        return loss

    @torch.no_grad()
    def measure(self, rows: Tensor) -> dict[str, Any]:
        """On prompts not learned from: how often a label is guessed, a good image scores above a bad one, and a good
        image's prompt is told from its perturbations; the last two beside the base reward."""
        self.head.eval()
        scores, good = self._ask(rows, self._asked[rows, :1])[:, 0], self._good[rows] > 0.5
        told = self._asked[rows][good]
        own = self._ask(rows[good], told)
        base = (self._images[rows[good]][:, None] * self._texts[told.clamp_min(0)]).sum(-1)
        prompts = [self._prompts[i] for i in rows.tolist()]
        named = [name for name, kept in zip(prompts, good.tolist(), strict=True) if kept]
        return {
            "error": float((self._good[rows] - scores).square().mean()),
            "accuracy": _share(((scores > 0.5) == good).double(), prompts),
            "auc": auc(scores, good), "base_auc": auc(self._scores[rows], good),
            "tells_prompt": _told(own, told, named), "base_tells_prompt": _told(base, told, named),
        }  # fmt: skip

    def _ask(self, rows: Tensor, prompts: Tensor) -> Tensor:
        """(B, K) scores of the rows' images for the prompts (B, K)."""
        images = self._images[rows][:, None].expand(-1, prompts.shape[1], -1)
        return self.head(joined(images, self._texts[prompts.clamp_min(0)]))

    def _features(self, rows: Tensor, prompts: Tensor) -> Tensor:
        return joined(self._images[rows], self._texts[prompts])

    @torch.no_grad()
    def _error(self, rows: Tensor) -> float:
        self.head.eval()
        return float((self._good[rows] - self._ask(rows, self._asked[rows, :1])[:, 0]).square().mean())

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.head.state_dict().items()}


def auc(scores: Tensor, good: Tensor) -> float | None:
    """Probability that a good image scores above a bad one, ties half; None when there is only one kind."""
    if not bool(good.any()) or bool(good.all()):
        return None
    gap = scores[good][:, None] - scores[~good][None]
    return float(((gap > 0).double() + (gap == 0).double() / 2).mean())


def _told(scores: Tensor, asked: Tensor, prompts: Sequence[str]) -> dict[str, Any] | None:
    """How often the first of the prompts (N, K) scores highest; places that are -1 were not asked."""
    if not len(scores):
        return None
    highest = scores.masked_fill(asked < 0, -torch.inf).argmax(1)
    return _share((highest == 0).double(), prompts)


def _share(right: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
    value = float(right.mean())
    low, high = wilson(value, len(right) / design_effect(right, prompts))
    return asdict(Share(value, low, high, len(right)))
