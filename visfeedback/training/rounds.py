"""Rounds of fresh images: which prompts and seeds, the images (and paths) of the current policy, their scores.

A round is a function of (weights at its start, settings, number). It is kept until the next one begins, and a
checkpoint within it holds it, so that a resumed run learns from the very same images; one at its end holds nothing.
Images of a prompt (a group) are drawn by one process; scores are shared with all, so that every process weighs them
alike. May import: types, sampling.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from visfeedback.sampling.generate import derive_seed
from visfeedback.sampling.render import evaluating
from visfeedback.sampling.rollout import (
    Paths,
    Walk,
    draw_with,
    noisy_steps,
    path_log_probs,
    roll,
)
from visfeedback.training.scorer import Desk, Scorer, Unscored, pictures
from visfeedback.training.settings import TrainSettings
from visfeedback.training.texts import Texts
from visfeedback.training.together import Gather, agreed
from visfeedback.training.weighing import weighed
from visfeedback.types.batches import Rollouts
from visfeedback.types.protocols import Progress
from visfeedback.types.records import Prompt


@dataclass(frozen=True)
class Studio:
    """Who draws and scores: the network, the judges, and this process among all."""

    settings: TrainSettings
    backbone: Any
    scorer: Scorer
    walk: Walk
    autocast: Callable[..., AbstractContextManager[Any]]
    gather: Gather
    progress: Progress
    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class Drawn:
    """This process's images of a round; tensors and lists have an entry for each."""

    number: int
    prompts: tuple[Prompt, ...]
    names: tuple[str, ...]
    group: Tensor  # (N,) long
    paths: Paths
    scores: Tensor  # (N,)
    weight: Tensor  # (N,)
    texts: Texts
    reference: Tensor | None = None  # (N, T) log-probabilities under the reference
    better: Tensor | None = None  # (N, K)
    facts: dict[str, float] = field(default_factory=dict)  # of the whole round, for metrics.jsonl

    def rollouts(self, rows: Sequence[int], walk: Walk, step: int | None = None) -> Rollouts:
        """These images' whole paths, or one step of them."""
        index, t = torch.tensor(rows), self.paths.t.expand(len(rows), -1)
        ends, steps = (slice(None), slice(None)) if step is None else (slice(step, step + 2), slice(step, step + 1))
        texts, negatives = [self.prompts[r].text for r in rows], [self.prompts[r].negative for r in rows]
        return Rollouts(
            latents=self.paths.latents[index, ends], t=t[:, ends], log_prob=self.paths.log_prob[index, steps],
            condition=self.texts(texts), scores=self.scores[index], group=self.group[index], weight=self.weight[index],
            unconditional=self.texts(negatives) if walk.guidance > 1 else None, guidance=walk.guidance, eta=walk.eta,
            reference_log_prob=None if self.reference is None else self.reference[index, steps],
            better=None if self.better is None else self.better[index],
        )  # fmt: skip


class Rounds:
    """Fresh rounds, one at a time."""

    def __init__(self, studio: Studio, prompts: Sequence[Prompt], memory: bool, state: dict[str, Any]) -> None:
        self.studio, self.prompts, self.memory, self.state = studio, prompts, memory, state
        self._now: Drawn | None = None
        self._restored: dict[str, Any] = {}

    @property
    def size(self) -> int:
        """Images that this process draws in a round."""
        rollout = self.studio.settings.rollout
        return rollout.prompts_per_round // self.studio.ranks * rollout.per_prompt

    def of(self, number: int) -> Drawn:
        """Round ``number``; drawn with the weights in use unless it is the current or the restored one."""
        if self._now is None or self._now.number != number:
            self._now = None  # its memory is free before the next one is drawn
            self._now = self._put(number) if self._restored.get("number") == number else self._draw(number)
            self._restored = {}
        return self._now

    def plan(self, number: int) -> list[tuple[Prompt, int, int, int, str]]:
        """(prompt, group, seed, seed of the initial noise, name) of this process's images."""
        rollout, seed = self.studio.settings.rollout, self.studio.settings.engine.seed
        images: list[tuple[Prompt, int, int, int, str]] = []
        for group in range(self.studio.rank, rollout.prompts_per_round, self.studio.ranks):
            place = number * rollout.prompts_per_round + group
            prompt = at(self.prompts, seed, place)
            start = derive_seed(seed, f"{prompt.id} start", place)
            for k in range(rollout.per_prompt):
                one = derive_seed(seed, prompt.id, place * rollout.per_prompt + k)
                images.append((prompt, group, one, start, f"{prompt.id}-{number}-{group}-{k}"))
        return images

    def _draw(self, number: int) -> Drawn:
        studio, images = self.studio, self.plan(number)
        texts = self._texts(images)
        paths, scores = agreed(lambda: self._paths(images, texts), studio.gather, studio.ranks == 1)
        everyone = studio.gather([(p.text, g, s) for (p, g, *_), s in zip(images, scores.tolist(), strict=True)])
        shares, facts = self._weigh(number, everyone)
        mine = slice(studio.rank * len(images), (studio.rank + 1) * len(images))
        drawn = self._assemble(number, images, texts, paths, shares[mine], facts)
        if not getattr(studio.settings.method, "reads_reference", False) or not self.memory:
            return drawn
        return self._with_reference(drawn)

    def _texts(self, images: Sequence[Any]) -> Texts:
        """Prompts of all images, and of what they are guided away from."""
        return Texts(self.studio.backbone, [text for p, *_ in images for text in (p.text, p.negative)])

    def _paths(self, images: Sequence[Any], texts: Texts) -> tuple[Paths, Tensor]:
        """Paths and scores (N, 1 or 2); one batch is scored while the next one is drawn, where that pays."""
        studio, size = self.studio, self.studio.settings.rollout.micro_batch
        parts: list[Paths] = []
        desk, drawing = Desk(studio.scorer, self._overlaps()), studio.progress("drawing a round", len(images))
        with desk, drawing as advance:
            for start in range(0, len(images), size):
                desk.look()
                part = images[start : start + size]
                parts.append(self._roll(part, texts))
                desk.hand_in(pictures(self._decode(parts[-1].images)), [p.text for p, *_ in part])
                advance(len(part))
            scores = desk.scores()
        paths = Paths(torch.cat([p.latents for p in parts]), parts[0].t, torch.cat([p.log_prob for p in parts]))
        return paths, scores

    def _overlaps(self) -> bool:
        wanted = self.studio.settings.rollout.overlap
        pays = self.studio.backbone.device.type != "cpu" or self.studio.scorer.waits
        return pays if wanted == "auto" else wanted == "on"

    def _roll(self, part: Sequence[Any], texts: Texts) -> Paths:
        studio, walk = self.studio, self.studio.walk
        without = texts([p.negative for p, *_ in part]) if walk.guidance > 1 else None
        starts = [start for _, _, _, start, _ in part] if studio.settings.rollout.shared_noise else None
        with torch.no_grad(), evaluating(studio.backbone.pipe), studio.autocast():
            if walk.sampler:
                words, negatives = [p.text for p, *_ in part], [p.negative for p, *_ in part]
                return draw_with(studio.backbone, words, negatives, [seed for _, _, seed, _, _ in part], walk, starts)
            return roll(
                studio.backbone, texts([p.text for p, *_ in part]), without, [seed for _, _, seed, _, _ in part],
                studio.backbone.latent_shape, walk, starts, self.memory,
            )  # fmt: skip

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        with evaluating(self.studio.backbone.pipe):
            return self.studio.backbone.decode(latents.to(self.studio.backbone.device))

    def _weigh(self, number: int, everyone: list[tuple[str, int, list[float]]]) -> tuple[Tensor, dict[str, float]]:
        """(all images, 2) scores as normalised and weights; and what metrics.jsonl shows of the round."""
        prompts, groups = [text for text, _, _ in everyone], torch.tensor([group for _, group, _ in everyone])
        native = torch.tensor([scores for _, _, scores in everyone])
        facts = {"reward": native[:, 0].mean().item(), "reward_std": native[:, 0].std(correction=0).item()}
        if native.shape[1] > 1:
            facts["watched_reward"] = native[:, 1].mean().item()
        scores, weight = weighed(self.studio.settings, native[:, 0], groups, prompts, self.state)
        if not bool(weight.any()):
            self._nothing(number, len(everyone))
        return torch.stack([scores, weight], dim=1), facts

    def _nothing(self, number: int, images: int) -> None:
        """No image has a weight: an error in the first round, where it is the reward's or the prompts' nature."""
        name = self.studio.settings.reward.name
        line = f"round {number}: {name} sets none of {images} images apart, as the method compares them"
        if number == 0:
            raise Unscored(
                f"{line}, so nothing can be learned from it; choose another --reward.name, prompts that the model does "
                "not always get alike, or more images of each: --rollout.per-prompt"
            )
        if self.studio.rank == 0:
            warnings.warn(f"{line}; it teaches nothing", stacklevel=2)

    def _assemble(
        self, number: int, images: Sequence[Any], texts: Texts, paths: Paths, shares: Tensor, facts: dict[str, float]
    ) -> Drawn:
        return Drawn(
            number, tuple(p for p, *_ in images), tuple(name for *_, name in images),
            torch.tensor([group for _, group, *_ in images]), paths, shares[:, 0], shares[:, 1], texts, facts=facts,
        )  # fmt: skip

    def _with_reference(self, drawn: Drawn) -> Drawn:
        """Log-probabilities under the reference: constants of a path, so they are computed once and kept with it."""
        studio, size = self.studio, self.studio.settings.rollout.micro_batch
        steps = noisy_steps(studio.backbone.process, studio.walk)
        found: list[Tensor] = []
        with evaluating(studio.backbone.pipe), studio.autocast(), studio.backbone.weights("reference"):
            for start in range(0, len(drawn.names), size):
                rows = range(start, min(start + size, len(drawn.names)))
                found.append(path_log_probs(studio.backbone, drawn.rollouts(rows, studio.walk), steps))
        return Drawn(**{**vars(drawn), "reference": torch.cat(found)})

    def save(self, number: int) -> dict[str, Any]:
        """The current round for a checkpoint, if steps of round ``number`` are still to come."""
        now = self._now
        if now is None or now.number != number:
            return {}
        shares = torch.stack([now.scores, now.weight], dim=1)
        tensors = {"latents": now.paths.latents, "log_prob": now.paths.log_prob, "shares": shares}
        if now.reference is not None:
            tensors["reference"] = now.reference
        return {"number": number, "facts": now.facts, "tensors": tensors}

    def restore(self, saved: dict[str, Any]) -> None:
        self._restored = saved

    def _put(self, number: int) -> Drawn:
        """The inverse of ``save``."""
        tensors, images = self._restored["tensors"], self.plan(number)
        paths = Paths(tensors["latents"], self.studio.backbone.process.times(self.studio.walk.steps),
                      tensors["log_prob"])  # fmt: skip
        facts = self._restored["facts"]
        drawn = self._assemble(number, images, self._texts(images), paths, tensors["shares"], facts)
        return Drawn(**{**vars(drawn), "reference": tensors.get("reference")})


def at(prompts: Sequence[Prompt], seed: int, place: int) -> Prompt:
    """The prompt at a place of the endless stream: epoch after epoch, each in its own shuffled order."""
    epoch, within = divmod(place, len(prompts))
    return prompts[order(len(prompts), seed, "prompts", epoch)[within]]


def order(count: int, seed: int, name: str, number: int) -> list[int]:
    """A shuffled order that follows from (seed, name, number)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, name, number))
    return torch.randperm(count, generator=generator).tolist()
