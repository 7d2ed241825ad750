"""Stored denoising paths as a source: images of a folder, their paths beside them, and what people said of them.

May import: types, plugins, store, preferences, sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visfeedback import store
from visfeedback.plugins import InputError
from visfeedback.preferences.pairs import pairs_from_feedback
from visfeedback.sampling.rollout import Paths
from visfeedback.sampling.samples import read_samples
from visfeedback.sampling.trajectories import read_trajectory, stack, trajectory_file
from visfeedback.training import looks, tables
from visfeedback.training.paths import PathBatches, check_groups
from visfeedback.training.rounds import Drawn
from visfeedback.training.settings import Data
from visfeedback.training.sources import Feed
from visfeedback.training.texts import Texts
from visfeedback.types.batches import Condition
from visfeedback.types.records import Frozen, Preference, Prompt


class StoredPath(Frozen):
    """One image with the path it came by."""

    id: str
    """of the sample"""
    prompt: Prompt
    folder: str
    """absolute; its trajectories/ holds the path"""
    better: tuple[float | None, ...]
    """P(it is better than the k-th image of its prompt); None = nobody was asked, or it is that image"""


def load_paths(data: Data) -> list[StoredPath]:
    """Images of ``data.paths`` that somebody compared, prompt by prompt, with what ``data.store`` says of them.

    Raises InputError when there is no path, no store, no comparison, or when prompts have different numbers of images.
    """
    if not data.paths or not data.store:
        raise InputError(
            "stored paths need images and what people said of them: give --data.paths DIR and --data.store URL"
        )
    root = Path(data.paths).expanduser()
    groups: dict[str, list[Any]] = {}
    for sample in {sample.id: sample for sample in read_samples(root)}.values():
        if trajectory_file(root, sample.id).is_file():
            groups.setdefault(sample.prompt_id, []).append(sample)
    if not groups:
        raise InputError(f"{root} has no trajectories/: its images were drawn without their paths; draw them anew")
    sizes = sorted({len(group) for group in groups.values()})
    if len(sizes) > 1 or sizes[0] < 2:
        raise InputError(
            f"prompts of {root} have {sizes} different images; expected the same number, 2 or more, of each"
        )
    with store.open(data.store, create=False) as opened:
        preferences, _ = pairs_from_feedback(opened.feedback(), criterion=data.criterion, ties="keep")
    found = [row for group in groups.values() for row in _compared(group, preferences, root)]
    if not found:
        raise InputError(f"nobody compared images of {root} yet; collect votes, or: visfeedback label --store URL ...")
    return found


def _compared(group: Sequence[Any], preferences: Sequence[Preference], root: Path) -> list[StoredPath]:
    """The images of one prompt; none when nobody preferred any of them."""
    place = {sample.id: k for k, sample in enumerate(group)}
    table: list[list[float | None]] = [[None] * len(group) for _ in group]
    for said in preferences:
        if said.winner in place and said.loser in place:
            winner, loser = place[said.winner], place[said.loser]
            table[winner][loser], table[loser][winner] = said.probability, 1 - said.probability
    if all(cell in (None, 0.5) for row in table for cell in row):
        return []
    return [
        StoredPath(
            id=s.id, prompt=Prompt.of(s.prompt, s.negative, category=s.category), folder=str(root.absolute()),
            better=tuple(table[k]),
        )
        for k, s in enumerate(group)
    ]  # fmt: skip


class PathFolder:
    """All stored paths as one round without end."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn

    @property
    def size(self) -> int:
        return len(self._drawn.names)

    def of(self, number: int) -> Drawn:
        return self._drawn

    def save(self, number: int) -> dict[str, Any]:
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Nothing is remembered."""


def open_paths(
    worker: tables.Worker, records: Sequence[StoredPath], gather: Callable[[list[Any]], list[Any]]
) -> Feed:  # fmt: skip
    """Batches of the paths; every process takes whole prompts."""
    settings = worker.settings
    count = len(records[0].better)
    if settings.rollout.per_prompt != count:
        raise InputError(f"prompts have {count} images here; give --rollout.per-prompt {count}")
    groups = len(records) // count
    if groups < worker.ranks:
        raise InputError(
            f"images of {groups} prompts were compared, which is too few for {worker.ranks} processes; collect more "
            f"votes, or start {groups} at most: accelerate launch --num_processes {groups} ..."
        )
    over = groups % worker.ranks  # every process takes as many
    records = records[: (groups - over) * count]
    mine = [records[g * count + k] for g in range(worker.rank, groups - over, worker.ranks) for k in range(count)]
    read = [read_trajectory(Path(record.folder), record.id) for record in mine]
    if len({walk for _, walk in read}) > 1:
        raise InputError("these paths were drawn in different ways; learn from each kind by itself")
    if any("reference_log_prob" not in path for path, _ in read):
        raise InputError("a path has no reference_log_prob; draw the images anew")
    drawn, walk = _drawn(worker, mine, [path for path, _ in read], count), read[0][1]
    check_groups(settings)
    batches = PathBatches(PathFolder(drawn), settings, worker.backbone.process, walk, gather)
    texts = list(dict.fromkeys(record.prompt.text for record in records))
    learned = f"{len(records)} images of {groups - over} prompts that people compared"
    learned += f" (of {groups}: every one of {worker.ranks} processes takes as many)" if over else ""

    def probe() -> tuple[Tensor, Condition, int]:
        rows = [k * count for k in range(len(mine) // count)][: looks.PROBE]
        return (
            drawn.paths.images[rows], drawn.texts([mine[r].prompt.text for r in rows]), max(1, looks.PROBE // len(rows))
        )  # fmt: skip

    return Feed(settings, worker.backbone, batches, texts, learned, probe)


def _drawn(worker: tables.Worker, mine: Sequence[StoredPath], read: list[dict[str, Tensor]], count: int) -> Drawn:
    known = [[math.nan if cell is None else cell for cell in record.better] for record in mine]
    better = torch.tensor(known)
    return Drawn(
        number=0, prompts=tuple(record.prompt for record in mine), names=tuple(record.id for record in mine),
        group=torch.arange(len(mine)) // count,
        paths=Paths(stack(read, "latents"), read[0]["t"], stack(read, "log_prob")),
        scores=better.nanmean(dim=1).nan_to_num(0.5), weight=torch.ones(len(mine)),
        texts=Texts(worker.backbone, [t for r in mine for t in (r.prompt.text, r.prompt.negative)]),
        reference=stack(read, "reference_log_prob"), better=better,
    )  # fmt: skip
