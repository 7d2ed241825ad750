"""Stored images as a source: scored once, weighed once, their latents in a table.

May import: types, plugins, rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from visfeedback.sampling.generate import derive_seed
from visfeedback.store.images import decode, read
from visfeedback.training import looks, tables
from visfeedback.training.batches import condition
from visfeedback.training.cache import Rows
from visfeedback.training.images import Picture
from visfeedback.training.scored import OneSet, ScoredBatches, ScoredSet
from visfeedback.training.scorer import Scorer
from visfeedback.training.sources import Feed
from visfeedback.training.weighing import weighed
from visfeedback.types.batches import Condition
from visfeedback.types.records import text_id

SCORED_AT_ONCE = 16


def open_images(
    worker: tables.Worker, images: Sequence[Picture], scorer: Scorer | None, state: dict[str, Any],
    real: ScoredBatches | None,
) -> Feed:  # fmt: skip
    """Batches of all images; ``scorer`` None takes the scores that the images bring."""
    settings = worker.settings
    native = _native(worker, images, scorer)
    groups: dict[str, int] = {}
    group = torch.tensor([groups.setdefault(image.group or image.prompt, len(groups)) for image in images])
    scores, weight = weighed(settings, native[:, 0], group, [image.prompt for image in images], state)
    facts = {name: native[:, k].mean().item() for k, name in enumerate(("reward", "watched_reward")[: native.shape[1]])}
    whole = image_set(worker, images, group, scores, weight, facts)
    batches = stored_batches(worker, whole, real)
    distinct = list(dict.fromkeys(whole.prompts))
    learned = f"{len(images)} images of {len(distinct)} prompts" + (
        f", scored by {scorer.reward.name}" if scorer else ""
    )
    about = {"images": len(images), "images_with_weight": int((weight != 0).sum())}
    return Feed(settings, worker.backbone, batches, distinct, learned, lambda: _probe(worker, whole), about)


def open_real(worker: tables.Worker, images: Sequence[Picture]) -> ScoredBatches:
    """Batches of images that all count alike."""
    one, group = torch.ones(len(images)), torch.arange(len(images))
    return stored_batches(worker, image_set(worker, images, group, one, one, {}), None)


def stored_batches(worker: tables.Worker, whole: ScoredSet, real: ScoredBatches | None) -> ScoredBatches:
    return ScoredBatches(
        OneSet(whole), worker.settings, worker.backbone.process, share=(worker.rank, worker.ranks),
        processes=worker.ranks, real=real,
    )  # fmt: skip


def image_set(
    worker: tables.Worker, images: Sequence[Picture], group: Tensor, scores: Tensor, weight: Tensor,
    facts: dict[str, float],
) -> ScoredSet:  # fmt: skip
    """Images with latents and texts in tables: of those that have a weight."""
    kept = [image for image, value in zip(images, weight.tolist(), strict=True) if value]
    paths = {image.image: image.path for image in kept}
    moments = tables.moments(worker, paths, list(paths))
    text = tables.text(worker, [*dict.fromkeys(image.prompt for image in kept), ""])
    return ScoredSet(
        [image.id for image in images], [image.prompt for image in images], [""] * len(images), group, scores, weight,
        ByName(moments, {image.id: image.image for image in images}), lambda texts: condition(text.rows(texts)), facts,
    )  # fmt: skip


def _probe(worker: tables.Worker, whole: ScoredSet) -> tuple[Tensor, Condition, int]:
    """Some of the images that are learned."""
    seed = worker.settings.engine.seed
    kept: list[int] = whole.weight.nonzero().flatten().tolist()

    def rank(row: int) -> int:
        return derive_seed(seed, f"{whole.names[row]} look", 0)

    order = sorted(kept, key=rank)[: looks.PROBE]
    latents = whole.moments.rows([whole.names[row] for row in order])["mean"].float()
    return latents, whole.text([whole.prompts[row] for row in order]), max(1, looks.PROBE // len(order))


class ByName:
    """Latents by the name of an image in the data instead of by its content."""

    def __init__(self, moments: Rows, content: dict[str, str]) -> None:
        self._moments, self._content = moments, content

    def rows(self, keys: Sequence[str]) -> dict[str, Tensor]:
        return self._moments.rows([self._content[key] for key in keys])


def _native(worker: tables.Worker, images: Sequence[Picture], scorer: Scorer | None) -> Tensor:
    """(N, 1 or 2) native scores; those of a reward are kept in a table, for they cost a pass over all images."""
    if scorer is None:
        return torch.tensor([[image.score or 0.0] for image in images])
    by_key = {text_id(image.prompt, image.image): image for image in images}

    def compute(keys: Sequence[str]) -> dict[str, Tensor]:
        some = [by_key[key] for key in keys]
        return {"scores": scorer([_open(image) for image in some], [image.prompt for image in some])}

    rows = worker.table(
        "scores", list(by_key), compute, SCORED_AT_ONCE, True, "scoring images", of={"judges": _judges(scorer)}
    )
    return rows.rows([text_id(image.prompt, image.image) for image in images])["scores"]


def _judges(scorer: Scorer) -> list[dict[str, Any]]:
    """What decides each column of the scores: as the reward was asked for, and what was found under that name."""
    asked = [(scorer.choice.name, scorer.reward), (scorer.choice.watch, scorer.watched)]
    return [
        {"reward": name, "preprocessing": reward.preprocessing, "origin": reward.origin.model_dump(mode="json")}
        for name, reward in asked
        if reward is not None
    ]


def _open(image: Picture) -> Image.Image:
    return decode(read(Path(image.path)), Path(image.path)).convert("RGB")
