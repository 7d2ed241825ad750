"""Where a run's batches come from, by what the method eats.

    pairs     stored pairs                                                     pair_source.py, batches.py
    scored    stored images, or rounds of fresh ones, with a score each        images.py, scored.py, rounds.py
    rollouts  denoising paths: rounds of fresh ones, or a folder of them       paths.py, rounds.py, stored_paths.py
    prompts   prompts and seeds; the method draws                              here

The loop knows a `Source` and nothing else. To add a kind: an opener here and its name in `OPENERS`.
May import: types, plugins, sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from visfeedback.sampling.generate import derive_seed
from visfeedback.sampling.render import evaluating
from visfeedback.sampling.rollout import Walk, roll
from visfeedback.training import looks
from visfeedback.training.rounds import at
from visfeedback.training.settings import TrainSettings
from visfeedback.training.texts import Texts
from visfeedback.types.batches import Condition, PromptBatch
from visfeedback.types.records import Prompt


class Batches(Protocol):
    """What a step is fed with; a function of (settings, step) and of what `save` put into the checkpoint."""

    @property
    def calls(self) -> int:
        """Network calls of an optimizer step."""
        ...

    def batch(self, step: int, micro: int = 0, rank: int = 0) -> Any:
        """What network call ``micro`` of step ``step`` (both from 0) of process ``rank`` learns from, on the CPU."""
        ...


class Source(Protocol):
    """Batches, and what the rest of the room wants to know about them."""

    batches: Any
    """see `Batches`"""
    learned: str
    """what is learned from, for people: `120 preferences over 30 prompts`"""

    @property
    def prompts(self) -> Sequence[str]:
        """All texts, for previews and the card."""
        ...

    def counts(self, step: int) -> dict[str, float]:
        """For metrics.jsonl after ``step`` steps: images_seen (truly used), images_made, the newest rewards."""
        ...

    def probe(self) -> tuple[Tensor, Condition, int]:
        """Images (N, C, h, w) on which the drift is measured, their prompts, and how many noises each is shown with;
        the same ones during the whole run."""
        ...

    def measure(self, loss: Callable[[Any], tuple[Tensor, dict[str, float]]]) -> dict[str, float]:
        """Measures on held-out data, if there is any; ``loss`` is the method's."""
        ...

    def measured_on(self) -> dict[str, dict[str, int]]:
        """How many images and prompts the measures rest on."""
        ...

    def summary(self, step: int) -> dict[str, Any]:
        """For summary.json."""
        ...

    def save(self, step: int) -> dict[str, Any]:
        """What a checkpoint after ``step`` steps must hold besides ``step``: plain values and tensors."""
        ...

    def restore(self, saved: dict[str, Any]) -> None: ...


@dataclass
class Feed:
    """A source of images that the policy makes, or that are stored one by one."""

    settings: TrainSettings
    backbone: Any
    batches: Any
    prompts: Sequence[str]
    learned: str
    looked_at: Callable[[], tuple[Tensor, Condition, int]]
    facts: dict[str, Any] = field(default_factory=dict)
    reward: Any = None
    """for methods that ask it themselves"""
    watch: Any = None
    """the same, of the one that is only logged"""

    def counts(self, step: int) -> dict[str, float]:
        return self.batches.counts(step)

    def probe(self) -> tuple[Tensor, Condition, int]:
        return self._probe

    @cached_property
    def _probe(self) -> tuple[Tensor, Condition, int]:
        return self.looked_at()

    def measure(self, loss: Callable[[Any], tuple[Tensor, dict[str, float]]]) -> dict[str, float]:
        return {}

    def measured_on(self) -> dict[str, dict[str, int]]:
        images, _, draws = self.probe()
        return {"drift": {"images": len(images), "prompts": min(len(images), len(self.prompts)), "draws": draws}}

    def summary(self, step: int) -> dict[str, Any]:
        return {**self.facts, "prompts": len(self.prompts), **self.counts(step)}

    def save(self, step: int) -> dict[str, Any]:
        return self.batches.save(step)

    def restore(self, saved: dict[str, Any]) -> None:
        self.batches.restore(saved)


class PromptBatches:
    """Prompts and seeds; with a fresh seed whenever a prompt comes again."""

    def __init__(self, prompts: Sequence[Prompt], settings: TrainSettings, walk: Walk, processes: int) -> None:
        self._prompts, self.settings, self._walk, self._processes = prompts, settings, walk, processes
        self.calls = settings.optim.accumulate

    @property
    def _per_step(self) -> int:
        return self.settings.optim.batch_size * self.settings.optim.accumulate * self._processes

    def batch(self, step: int, micro: int = 0, rank: int = 0) -> PromptBatch:
        size, seed = self.settings.optim.batch_size, self.settings.engine.seed
        start = step * self._per_step + (micro * self._processes + rank) * size
        prompts = [at(self._prompts, seed, place) for place in range(start, start + size)]
        seeds = [derive_seed(seed, prompt.id, start + i) for i, prompt in enumerate(prompts)]
        return PromptBatch(tuple(prompts), tuple(seeds), self._walk.steps, self._walk.guidance, self._walk.eta)

    def counts(self, step: int) -> dict[str, float]:
        return {"images_seen": step * self._per_step, "images_made": step * self._per_step}

    def save(self, step: int) -> dict[str, Any]:
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Nothing is remembered."""


def drawn_probe(
    backbone: Any, prompts: Sequence[Prompt], seed: int, walk: Walk, autocast: Callable[..., Any]
) -> tuple[Tensor, Condition, int]:
    """Images of the reference, which are the same whenever they are asked for."""
    ordered = sorted(prompts, key=lambda prompt: derive_seed(seed, f"{prompt.id} look", 0))[: looks.PROBE]
    texts = Texts(backbone, [text for p in ordered for text in (p.text, p.negative)])
    condition = texts([p.text for p in ordered])
    without = texts([p.negative for p in ordered]) if walk.guidance > 1 else None
    seeds = [derive_seed(seed, f"{prompt.id} look", 1) for prompt in ordered]
    with torch.no_grad(), evaluating(backbone.pipe), autocast(), backbone.weights("reference"):
        paths = roll(backbone, condition, without, seeds, backbone.latent_shape, walk, memory=False)
    return paths.images, condition, max(1, looks.PROBE // len(ordered))
