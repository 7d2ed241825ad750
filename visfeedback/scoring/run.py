"""A whole scoring run on disk: plan, score what is missing together with whoever else is at it, merge.

``OUT.parts/`` beside the table holds the plan and the journals while a run is going on; it is gone when the table is
whole. Every process does all of this: the first makes the plan, each takes shards that nobody holds, waits for the
others at the end (and takes over from one that died), and the last merges. May import: types, rewards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from visfeedback.plugins import InputError
from visfeedback.scoring import features, merge, pairing, plan, tables
from visfeedback.scoring.banks import nothing_kept
from visfeedback.scoring.carry import Carrier
from visfeedback.scoring.engine import Engine
from visfeedback.scoring.journal import Journal
from visfeedback.scoring.locks import locked, open_locked, still_named
from visfeedback.scoring.settings import Pairing, ScoreSettings
from visfeedback.scoring.sources import Item, Source
from visfeedback.scoring.work import Held, Task, identities
from visfeedback.types.files import sync_folder
from visfeedback.types.protocols import Progress, Reward, silent

LOCK, ALIVE = "lock", "alive"


@dataclass
class Done:
    """What a run did."""

    images: int = 0
    """distinct contents"""
    scored: int = 0
    """scores computed by this process"""
    seconds: float = 0.0
    """without loading the rewards"""
    failed: list[dict[str, object]] = field(default_factory=list)
    """the lines of OUT.failed.jsonl"""
    notes: list[str] = field(default_factory=list)
    """images that were scored, but not as one might think"""


@dataclass
class Run:
    """Everything a run needs; ``go`` does it."""

    source: Source
    rewards: Sequence[Reward]
    out: Path
    prompts: Sequence[str] = ()
    pairing: Pairing | None = None
    settings: ScoreSettings = field(default_factory=ScoreSettings)
    device: str = "cpu"
    progress: Progress = silent
    rank: int = 0
    """of this process: where in the list it begins to look for work"""
    processes: int = 1
    """how many a launcher started together; others may join all the same"""

    def go(self) -> Done:
        """Raises InputError for whatever is wrong with the request as a whole; single images never raise."""
        began = time.perf_counter()
        tables.check(self.out)
        self._parts = self.out.with_name(f"{self.out.name}.parts")
        self._pairing: Pairing = pairing.resolve(self.pairing, self.prompts)
        self._about = identities(self.rewards)
        self._columns = pairing.columns(self.source.items(), self.prompts, self._pairing)
        self._check_prompts()
        done = Done()
        found, alive = self._plan()
        try:
            done.images = found.units
            self._score(found, done)
            done.notes = self._merge(found, alive)
        finally:
            os.close(alive)
        failed = merge.failed_file(self.out)
        if failed.is_file():
            done.failed = [json.loads(line) for line in failed.read_text(encoding="utf-8").splitlines()]
        done.seconds = time.perf_counter() - began
        return done

    # the plan

    def _items(self) -> Iterator[Item]:
        return pairing.assign(self.source.items(), self.prompts, self._pairing)

    def _check_prompts(self) -> None:
        """When not one image has a prompt, the request is at fault and not the images."""
        readers = [reward.name for reward in self.rewards if reward.reads_prompt]
        if self.prompts or self._columns or not readers:
            return
        if not any(item.prompt for item in self.source.items()) and any(True for _ in self.source.items()):
            raise InputError(
                f"no image has a prompt, and {readers[0]} needs one; give --prompts TEXT_OR_FILE, a metadata.jsonl, or "
                "NAME.txt (UTF-8) beside NAME.png"
            )

    def _plan(self) -> tuple[plan.Plan, int]:
        """The plan of this very request, made when it is not there, and a descriptor that says we work on it."""
        count = 0

        def counted() -> Iterator[Item]:
            nonlocal count
            for item in self._items():
                count += 1
                yield item

        name = plan.fingerprint(counted(), self._about, self._columns)
        if not count:
            raise InputError("no images there; expected files such as NAME.png or NAME.jpg, or rows of a list")
        shard = self.settings.images_at_once(count, self.processes)
        with locked(self._parts / LOCK):
            folder = self._parts / f"{name}-{shard}"
            if not folder.is_dir():
                self._make(folder, count, shard)
            alive = open_locked(folder / ALIVE, wait=True, shared=True)
        assert alive is not None, "nobody removes a plan without the lock"
        return plan.Plan(folder), alive

    def _make(self, folder: Path, count: int, shard: int) -> None:
        """Under a temporary name first, so that a plan is whole or absent. Known scores are carried over."""
        old = [path for path in self._parts.iterdir() if path.is_dir()]
        stopped = [path for path in old if not path.name.startswith(".")]
        for path in stopped:
            descriptor = open_locked(path / ALIVE, wait=False)
            if descriptor is None:
                raise InputError(f"another command is writing {self.out} now; wait for it, or give another --out")
            os.close(descriptor)
        temporary = folder.with_name(f".{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            with self.progress("reading images", count) as advance:
                made, known = plan.write(
                    temporary, self.source, self._items(), self._about, self._columns, shard,
                    self.settings.threads, advance,
                )  # fmt: skip
            carrier = Carrier(made, known)
            if self.out.exists():
                carrier.carry(tables.read(self.out), str(self.out))
            for path in stopped:
                carrier.carry(merge.as_tables(plan.Plan(path)), f"{path.parent} of a run that was stopped")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            _tidy(self._parts)
            raise
        os.rename(temporary, folder)
        sync_folder(self._parts)
        for path in old:
            shutil.rmtree(path, ignore_errors=True)

    # the scores

    def _score(self, found: plan.Plan, done: Done) -> None:
        engine = Engine(self.rewards, self.settings, self.device, self._remember())
        with nothing_kept(self.rewards), self.progress("scoring", found.units) as advance:
            claims = Claims(found, len(self.rewards), self.rank, advance)
            try:
                engine.run(claims.free(), self.source.fetch, advance)
                for held in claims.others():
                    engine.run([held], self.source.fetch, advance)
            finally:
                done.scored = claims.close()
        if self.settings.cache != "off":
            features.shrink(self._cache(), self.settings.cache_gib * 2**30)

    def _cache(self) -> Path:
        return features.default_folder() if self.settings.cache == "auto" else Path(self.settings.cache).expanduser()

    def _remember(self) -> Callable[[Reward], features.Features | None]:
        """Features are kept unless they are the pixels themselves."""
        if self.settings.cache == "off":
            return lambda reward: None
        disk = partial(features.Disk, self._cache(), max_bytes=self.settings.cache_feature_kib * 2**10)
        return lambda reward: None if reward.encoder == "pixels" else disk(reward=reward)

    # the table

    def _merge(self, found: plan.Plan, alive: int) -> list[str]:
        """Done by one process; the others find that it has been done, also when the same command began anew since."""
        with locked(self._parts / LOCK):
            try:
                if not still_named(alive, found.folder / ALIVE):
                    return []
                said = list(merge.notes(found))
                merge.merge(found, self.out)
                gone = found.folder.with_name(f".{found.folder.name}")
                os.rename(found.folder, gone)  # at once, so that nobody makes a file in it any more
                shutil.rmtree(gone, ignore_errors=True)
                return said
            finally:
                _tidy(self._parts)


def _tidy(parts: Path) -> None:
    """Remove the folder when only the lock, which we hold, is in it."""
    if [path.name for path in parts.iterdir()] == [LOCK]:
        (parts / LOCK).unlink()
        with contextlib.suppress(OSError):
            parts.rmdir()


class Claims:
    """The shards of a plan as this process gets hold of them."""

    def __init__(self, found: plan.Plan, rewards: int, rank: int, advance: Callable[[int], None]) -> None:
        self._plan, self._rewards, self._advance = found, rewards, advance
        self._order = [(rank + shard) % found.shards for shard in range(found.shards)]
        self._settled: set[int] = set()
        self._held: list[Journal] = []

    def free(self) -> Iterator[Held]:
        """Shards that nobody holds, without waiting."""
        for shard in self._order:
            yield from self._claim(shard, wait=False)

    def others(self) -> Iterator[Held]:
        """Wait for what other processes hold; a shard comes here only when its holder died."""
        for shard in self._order:
            if shard not in self._settled:
                yield from self._claim(shard, wait=True)

    def close(self) -> int:
        """Give back everything; how many scores were added."""
        for journal in self._held:
            journal.close()
        return sum(journal.scored for journal in self._held)

    def _claim(self, shard: int, wait: bool) -> Iterator[Held]:
        journal = Journal.claim(self._plan.journal(shard), shard * self._plan.shard, wait=wait)
        if journal is None:
            if wait:  # the folder is gone: all was done and merged
                self._settled.add(shard)
            return
        self._settled.add(shard)
        if journal.entries.done:
            journal.close()
            self._advance(min(self._plan.shard, self._plan.units - shard * self._plan.shard))
            return
        self._held.append(journal)
        yield Held(journal, self._tasks(shard, journal))

    def _tasks(self, shard: int, journal: Journal) -> Iterator[Task]:
        for place, unit in enumerate(self._plan.read_units(shard)):
            found = {r: journal.entries.missing(place, r, len(unit.prompts)) for r in range(self._rewards)}
            missing = {reward: mask for reward, mask in found.items() if mask.any()}
            if missing:
                yield Task(unit, missing)
            else:
                self._advance(1)
        journal.entries = type(journal.entries)()  # not needed any more
