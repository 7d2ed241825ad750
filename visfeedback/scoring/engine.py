"""Runs several rewards over a stream of images: every network sees an image once, whatever asks for its features.

Rewards with the same encoder, preprocessing and dtype are one group and share features. Batches hold images of one
preprocessed shape and are filled within a shard. Memory, besides the networks: 2 x ``batch_size`` preprocessed images
of each distinct preprocessing on their way, ``PENDING`` bytes that wait for others of their shape, one batch of
features; nothing grows with the number of images. May import: types, rewards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.scoring.answers import Answers
from visfeedback.scoring.features import Features
from visfeedback.scoring.feed import Ready, Request, in_order, prepare
from visfeedback.scoring.settings import ScoreSettings
from visfeedback.scoring.work import Held, Shard, Task
from visfeedback.types.protocols import Reward

PENDING = 256 * 2**20
"""Bytes of preprocessed images that may wait until a batch of their shape is full."""
KEPT_BATCH = 256
"""Images whose features come from the cache that are combined at once: there is no network to fill memory."""

Waiting = dict[tuple[tuple[int, ...], torch.dtype], list[tuple[Ready, Tensor]]]


@dataclass
class Group:
    """Rewards that share one image encoder."""

    owner: Reward
    """any of them: they compute the same features"""
    members: list[int]
    features: Features | None
    batch: int
    """images at once; halves when memory runs out"""
    pixels: Waiting = field(default_factory=dict)
    kept: Waiting = field(default_factory=dict)

    @property
    def preprocessing(self) -> str:
        return self.owner.preprocessing


def groups(rewards: Sequence[Reward], batch: int, remember: Callable[[Reward], Features | None]) -> list[Group]:
    """One group for each distinct (encoder, preprocessing, dtype), in the order of their first reward."""
    found: dict[tuple[str, str, str], Group] = {}
    for number, reward in enumerate(rewards):
        key = (reward.encoder, reward.preprocessing, reward.origin.dtype)
        if key not in found:
            found[key] = Group(reward, [], remember(reward), batch)
        found[key].members.append(number)
    return list(found.values())


def pick_device(name: str) -> str:
    """``auto`` is this process's GPU (by LOCAL_RANK under a launcher), else Apple's, else the CPU.

    Raises InputError for a device that is none, or that this machine lacks.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().partition("\n")[0]
        raise InputError(f"--device {name}: {why or 'not here'}; write auto, cpu, cuda, cuda:1 or mps") from None
    return name


class Engine:
    """``run`` answers every task of every shard; the shards keep the answers."""

    def __init__(
        self, rewards: Sequence[Reward], settings: ScoreSettings, device: str = "cpu",
        remember: Callable[[Reward], Features | None] = lambda reward: None,
    ) -> None:  # fmt: skip
        self._settings, self._device = settings, device
        self._groups = groups(rewards, settings.batch_size, remember)
        self._answers = Answers(rewards, settings.batch_size)

    @torch.no_grad()
    def run(
        self, work: Iterable[Held], fetch: Callable[[str], Callable[[], object]],
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:  # fmt: skip
        """``fetch(location)`` gives the function that reads an image. Raises InputError when a reward is set up wrong.

        What is finished when an error or an interrupt comes is with the shards.
        """
        for group in self._groups:  # an earlier run may have been interrupted
            group.pixels.clear()
            group.kept.clear()
        current: Shard | None = None
        ahead = self._settings.batch_size + self._settings.threads
        with (
            ThreadPoolExecutor(self._settings.threads, thread_name_prefix="scoring") as pool,
            closing(in_order(pool, prepare, self._requests(work, fetch), ahead)) as stream,  # stops reading on an error
        ):
            for ready in stream:
                if current is not None and ready.shard is not current:
                    self._close(current)
                current = ready.shard
                self._take(ready)
                advance(1)
            if current is not None:
                self._close(current)

    def _requests(self, work: Iterable[Held], fetch: Callable[[str], Callable[[], object]]) -> Iterator[Request]:
        for held in work:
            some = False
            for task in held.tasks:
                some = True
                yield self._request(held.shard, task, fetch)
            if not some:
                held.shard.finish()

    def _request(self, shard: Shard, task: Task, fetch: Callable[[str], Callable[[], object]]) -> Request:
        """What this image needs. Its bytes are asked for now, in order, but only when something must be computed."""
        sha256 = task.unit.sha256
        needed = [(n, g) for n, g in enumerate(self._groups) if any(member in task.missing for member in g.members)]
        kept = {n: g.features for n, g in needed if g.features is not None and g.features.has(sha256)}
        make = {n: (g.preprocessing, g.owner.preprocess) for n, g in needed}
        pixels = dict(make[n] for n in make if n not in kept)
        read = task.fetch or (fetch(task.unit.location) if pixels else lambda: fetch(task.unit.location)())
        load = {n: (lambda features=features: features.get(sha256)) for n, features in kept.items()}
        return Request(shard, task, read, pixels, load, make, self._settings.max_megapixels)

    def _take(self, ready: Ready) -> None:
        if ready.note:
            ready.shard.note(ready.task.unit, ready.note)
        for number, group in enumerate(self._groups):
            members = [member for member in group.members if member in ready.task.missing]
            if members and number in ready.features:
                self._wait(group.kept, ready, ready.features[number])
            elif members and group.preprocessing in ready.errors:
                self._answers.refuse(ready, members, ready.errors[group.preprocessing])
            elif members:
                self._wait(group.pixels, ready, ready.pixels[group.preprocessing])
            self._work(group)

    def _wait(self, waiting: Waiting, ready: Ready, value: Tensor) -> None:
        waiting.setdefault((tuple(value.shape), value.dtype), []).append((ready, value))

    def _work(self, group: Group) -> None:
        """Run every batch that is full, and the largest when too much waits."""
        for shape in [shape for shape, rows in group.pixels.items() if len(rows) >= group.batch]:
            self._encode(group, group.pixels.pop(shape))
        for shape in [shape for shape, rows in group.kept.items() if len(rows) >= KEPT_BATCH]:
            self._combine_kept(group, group.kept.pop(shape))
        bytes_of = {shape: len(rows) * rows[0][1].nbytes for shape, rows in group.pixels.items()}
        if sum(bytes_of.values()) > PENDING:
            self._encode(group, group.pixels.pop(max(bytes_of, key=bytes_of.__getitem__)))

    def _close(self, shard: Shard) -> None:
        """Run what is left of a shard and finish it."""
        for group in self._groups:
            while group.pixels:
                self._encode(group, group.pixels.popitem()[1])
            while group.kept:
                self._combine_kept(group, group.kept.popitem()[1])
            if group.features is not None:
                group.features.flush()
        shard.finish()

    def _encode(self, group: Group, rows: list[tuple[Ready, Tensor]]) -> None:
        """Features of a batch, for the cache and for the rewards of the group."""
        for start in range(0, len(rows), group.batch):
            part = rows[start : start + group.batch]
            try:
                features = group.owner.encode_images(torch.stack([pixels for _, pixels in part]))
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                group.batch = max(1, len(part) // 2)
                torch.cuda.empty_cache()
                return self._encode(group, rows[start:])
            if group.features is not None:
                group.features.put([ready.task.unit.sha256 for ready, _ in part], features)
            self._answers.give(group.members, [ready for ready, _ in part], features)

    def _combine_kept(self, group: Group, rows: list[tuple[Ready, Tensor]]) -> None:
        features = torch.stack([feature for _, feature in rows]).to(self._device)
        self._answers.give(group.members, [ready for ready, _ in rows], features)
