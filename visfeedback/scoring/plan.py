"""What there is to score, written down once so that several processes and later runs agree on it.

A plan is a folder: ``plan.json`` (rewards, prompts of a matrix), ``items.parquet`` (a row for each row of images that
the table will have: name, prompt, unit, or why it cannot be read) and ``units.parquet`` (a row for each distinct
content, a row group for each shard). Its name is a digest of all that it depends on: the list of images with sizes and
times, prompts, rewards; and the size of its shards. Reading a plan takes memory for one shard; making it, some hundred
bytes an image.
May import: types.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from visfeedback.scoring.decode import BadImage
from visfeedback.scoring.feed import in_order
from visfeedback.scoring.sources import Item, Source
from visfeedback.scoring.tables import sync_file
from visfeedback.scoring.work import Identity, Unit
from visfeedback.types.files import write_json

CHUNK = 4096
"""Items written, or read, at once."""
ITEMS = pa.schema([("image", pa.string()), ("prompt", pa.string()), ("unit", pa.int64()), ("error", pa.string())])
UNITS = pa.schema([("sha256", pa.string()), ("location", pa.string()), ("prompts", pa.list_(pa.string()))])

Digests = dict[str, tuple[int, str, list[str | None]]]
"""sha256 -> number, location, prompts"""


def fingerprint(items: Iterable[Item], rewards: Sequence[Identity], prompts: Sequence[str] | None) -> str:
    """16 hex digits over everything that a plan depends on, but for the size of its shards."""
    digest = hashlib.sha256(json.dumps([[r.key for r in rewards], prompts]).encode())
    for item in items:
        digest.update(json.dumps(item).encode())
    return digest.hexdigest()[:16]


class Plan:
    """A plan that exists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        self.rewards = [Identity(**one) for one in about["rewards"]]
        self.columns: tuple[str, ...] | None = tuple(about["prompts"]) if about["prompts"] is not None else None
        self.shard: int = about["shard"]
        self.units: int = about["units"]
        self.items: int = about["items"]

    @property
    def shards(self) -> int:
        return -(-self.units // self.shard)

    def journal(self, shard: int) -> Path:
        return self.folder / f"{shard:06}.jsonl"

    def read_units(self, shard: int) -> list[Unit]:
        """The units of one shard."""
        with parquet.ParquetFile(self.folder / "units.parquet") as file:
            rows = file.read_row_group(shard).to_pylist()
        first = shard * self.shard
        return [
            Unit(first + i, row["sha256"], row["location"], self.columns or tuple(row["prompts"]))
            for i, row in enumerate(rows)
        ]

    def read_items(self) -> Iterator[dict[str, Any]]:
        """`image`, `prompt`, `unit` (None when it cannot be read) and `error` of every item, in order."""
        with parquet.ParquetFile(self.folder / "items.parquet") as file:
            for batch in file.iter_batches(CHUNK):
                yield from batch.to_pylist()


def write(
    folder: Path, source: Source, items: Iterable[Item], rewards: Sequence[Identity], prompts: tuple[str, ...] | None,
    shard: int, threads: int, advance: Callable[[int], None] = lambda count: None,
) -> tuple[Plan, Digests]:  # fmt: skip
    """Read every image once to know its content, and write the plan into ``folder``, which is empty.

    ``items`` come with their prompts (``pairing.assign``). Also returns the units by digest, to find known scores.
    """
    known: Digests = {}
    count = 0
    with parquet.ParquetWriter(folder / "items.parquet", ITEMS) as writer:
        for rows in _chunks(_rows(source, items, known, threads, advance)):
            writer.write_table(pa.Table.from_pylist(rows, ITEMS))
            count += len(rows)
    _write_units(folder, known, prompts, shard)
    for name in ("items.parquet", "units.parquet"):
        sync_file(folder / name)
    write_json(folder / "plan.json", {
        "rewards": [one.model_dump() for one in rewards], "prompts": prompts, "shard": shard, "units": len(known),
        "items": count,
    })  # fmt: skip
    return Plan(folder), known


def _rows(
    source: Source, items: Iterable[Item], known: Digests, threads: int, advance: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """One row for each item that is not the very same again."""
    seen: set[int] = set()
    with ThreadPoolExecutor(threads, thread_name_prefix="hashing") as pool:
        jobs = ((item, None if item.error else source.fetch(item.location)) for item in items)
        for item, sha256, error in in_order(pool, _digest, jobs, 2 * threads):
            advance(1)
            mark = hash((item.image, item.prompt, sha256))
            if mark in seen:
                continue
            seen.add(mark)
            unit = None if error else _unit(known, item, sha256)
            yield {"image": item.image, "prompt": item.prompt, "unit": unit, "error": error or None}


def _unit(known: Digests, item: Item, sha256: str) -> int:
    number, _, prompts = known.setdefault(sha256, (len(known), item.location, []))
    if item.prompt not in prompts:
        prompts.append(item.prompt)
    return number


def _digest(job: tuple[Item, Callable[[], Any] | None]) -> tuple[Item, str, str]:
    """sha256 of an item's bytes, or why there are none."""
    item, read = job
    if read is None:
        return item, "", item.error
    try:
        return item, hashlib.sha256(read()).hexdigest(), ""
    except BadImage as error:
        return item, "", str(error)
    except OSError as error:
        return item, "", f"{item.location}: {error.strerror}"


def _write_units(folder: Path, known: Digests, prompts: tuple[str, ...] | None, shard: int) -> None:
    with parquet.ParquetWriter(folder / "units.parquet", UNITS) as writer:
        for rows in _chunks(known.items(), shard):
            own = [[] if prompts else texts for _, (_, _, texts) in rows]
            columns = [[sha256 for sha256, _ in rows], [location for _, (_, location, _) in rows], own]
            writer.write_table(pa.table(columns, schema=UNITS), row_group_size=shard)


def _chunks(rows: Iterable[Any], size: int = CHUNK) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
