"""What a run computes once: images' latent moments, prompts' encodings, the reference's errors.

Each is a table on disk (`cache.py`) or, with its switch in `engine.cache` off, computed at every use; always without
dropout, which would make a constant of what chance gave it first.
May import: types, plugins, sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visfeedback.sampling.render import evaluating
from visfeedback.training.batches import MIRRORED, PairBatches, condition_rows, draw_key
from visfeedback.training.cache import Compute, Live, Rows, Stored, digest, fill
from visfeedback.training.data import Pair, pixels
from visfeedback.training.settings import TrainSettings
from visfeedback.types.protocols import Progress

NOTHING = Live(lambda keys: {})
"""a table without rows"""
IMAGES_AT_ONCE, TEXTS_AT_ONCE = 8, 16


@dataclass(frozen=True)
class Worker:
    """Who computes the tables: the network, this process among all, and how it casts and waits."""

    settings: TrainSettings
    backbone: Any
    folder: Path
    progress: Progress
    autocast: Callable[..., AbstractContextManager[Any]]
    barrier: Callable[[], None]
    rank: int = 0
    ranks: int = 1

    def table(
        self, name: str, keys: Sequence[str], compute: Compute, chunk: int, on: bool, words: str, pad: bool = True,
        of: Mapping[str, Any] | None = None,
    ) -> Rows:  # fmt: skip
        """Rows of ``keys``; ``words`` is what people see while the table fills, ``of`` what rows follow from besides
        the network and the settings."""

        def undisturbed(some: Sequence[str]) -> dict[str, Tensor]:
            with evaluating(self.backbone.pipe):
                return compute(some)

        if not on:
            return Live(undisturbed)
        folder = self.folder / f"{name}-{self._depends_on(name, of)}"
        fill(folder, keys, undisturbed, chunk, (self.progress, words), self.rank, self.ranks, pad)
        self.barrier()
        return Stored(folder, keys, chunk)

    def _depends_on(self, name: str, of: Mapping[str, Any] | None = None) -> str:
        """Digest of everything a row of this table follows from, besides its key."""
        model, data, engine = self.settings.model, self.settings.data, self.settings.engine
        parts: dict[str, Any] = {
            "model": getattr(self.backbone, "revision", model.id), "dtype": model.dtype,
            "adapter": getattr(self.backbone, "adapter_revision", model.adapter),
            "threads": torch.get_num_threads(), "device": self.backbone.device.type,
        }  # fmt: skip
        if name != "text":
            parts["resolution"] = resolution(self.settings, self.backbone)
        if name == "reference":
            parts |= {"method": self.settings.method.model_dump(mode="json"), "seed": engine.seed,
                      "of": model.reference,
                      "drop": data.prompt_drop, "flip": data.flip, "group": data.group, "times": data.times,
                      "precision": engine.mixed_precision, "batch": self.settings.optim.batch_size}  # fmt: skip
        return digest(parts | dict(of or {}))


def resolution(settings: TrainSettings, backbone: Any) -> int:
    """Side of the training images, px."""
    return settings.data.resolution or backbone.resolution


def moments(worker: Worker, paths: Mapping[str, str], keys: Sequence[str]) -> Rows:
    """Image key -> mean and std (C, h, w) of its latents; ``paths``: where each image is."""
    side = resolution(worker.settings, worker.backbone)

    def compute(some: Sequence[str]) -> dict[str, Tensor]:
        images = [pixels(Path(paths[k.removesuffix(MIRRORED)]), side, k.endswith(MIRRORED)) for k in some]
        mean, std = worker.backbone.encode(torch.stack(images).to(worker.backbone.device))
        return {"mean": mean, "std": std}

    return worker.table(
        "moments", keys, compute, IMAGES_AT_ONCE, worker.settings.engine.cache.moments, "encoding images"
    )


def text(worker: Worker, keys: Sequence[str]) -> Rows:
    """Prompt -> its condition."""

    def compute(some: Sequence[str]) -> dict[str, Tensor]:
        return condition_rows(worker.backbone.encode_text(some))

    return worker.table("text", keys, compute, TEXTS_AT_ONCE, worker.settings.engine.cache.text, "encoding prompts")


def with_reference(worker: Worker, batches: PairBatches, items: Iterable[tuple[Pair, int]], again: bool) -> PairBatches:
    """The same batches, bringing the reference's errors of ``items`` if the method can use them ready-made.

    Not when no item is used ``again``: computed in the loop they cost the same, and no disk. They are the same to the
    bit, for chunks of the table are batches of the loop.
    """
    reference = getattr(worker.settings.method, "reference", None)
    if reference is None or not (again and worker.settings.engine.cache.reference):
        return batches

    def compute(keys: Sequence[str]) -> dict[str, Tensor]:
        with worker.autocast():
            return {"errors": reference(worker.backbone, batches.pairs_of(keys).to(worker.backbone.device)).float()}

    keys = [draw_key(pair, draw) for pair, draw in items]
    rows = worker.table(
        "reference", keys, compute, batches.recipe.batch_size, True, "measuring the reference", pad=False
    )
    return PairBatches(batches.pairs, replace(batches.tables, reference=rows), batches.process, batches.recipe)
