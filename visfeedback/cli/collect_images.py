"""The images of `visfeedback collect --images SRC`, and its tests with a known answer, into the store."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from visfeedback.cli.console import Console
from visfeedback.plugins import InputError
from visfeedback.types.records import Sample, text_id

if TYPE_CHECKING:
    from visfeedback.scoring.sources import Item, Source
    from visfeedback.store import Store
    from visfeedback.store.core import Drawn

CHUNK = 64  # images added at a time


def gather(store: Store, source: str, console: Console) -> tuple[list[Sample], list[str]]:
    """The samples of ``source``, which are in the store then, and a line for each image that is no good.

    ``source``: a folder (prompts from metadata.jsonl or NAME.txt), a samples.jsonl, parquet, or ``store``. Images in
    sub-folders count as made by whatever the sub-folder is called. Raises InputError when there is no good image.
    """
    from visfeedback.cli import label

    path = Path(source).expanduser()
    if source == "store":
        return list(store.samples()), []
    if path.suffix == ".jsonl" or (path / "samples.jsonl").is_file():
        listed, root = label._listed(str(path))
        return label._add(store, listed, root or Path(), console)
    return _from_files(store, source, console)


def _from_files(store: Store, name: str, console: Console) -> tuple[list[Sample], list[str]]:
    from visfeedback.scoring.settings import ScoreSettings
    from visfeedback.scoring.sources import open_source

    source = open_source(name, ScoreSettings())
    good: list[Sample] = []
    failed: list[str] = []
    drawn = _drawn(source, list(source.items()), failed, console)
    while part := list(islice(drawn, CHUNK)):
        store.add_drawn(part)
        good += [one.sample for one in part]
    if not good:
        raise InputError(failed[0] if failed else f"no images in {name}; expected PNG, JPEG or WebP files")
    return good, failed


def _drawn(source: Source, items: list[Item], failed: list[str], console: Console) -> Iterator[Drawn]:
    """Every good image with its sample; what is wrong with the others goes to ``failed``."""
    from visfeedback.store.images import BadImage

    with console.progress("adding images", len(items)) as advance:
        for item in items:
            try:
                yield _one(source, item)
            except (BadImage, OSError) as error:
                failed.append(str(error))
            advance(1)


def _one(source: Source, item: Item) -> Drawn:
    from visfeedback.store.images import BadImage

    if item.error:
        raise BadImage(item.error)
    if not item.prompt:
        raise BadImage(f"{item.image} has no prompt; write it to NAME.txt beside it, or to metadata.jsonl")
    maker = Path(item.image).parts[0] if len(Path(item.image).parts) > 1 else ""
    return _sample(source.fetch(item.location)(), item.image, item.prompt, maker)


def _sample(data: bytes, name: str, prompt: str, maker: str = "") -> Drawn:
    from visfeedback.store.core import Drawn
    from visfeedback.store.images import inspect

    found = inspect(data, name)
    sample = Sample(
        id=found.id, prompt_id=text_id(prompt, ""), prompt=prompt, path="", width=found.width, height=found.height,
        model=maker,
    )  # fmt: skip
    return Drawn(sample, data, found)


def known_answers(store: Store, path: Path) -> list[tuple[Sample, Sample, float]]:
    """Rows of a pairs file (prompt, image_a, image_b, label), their images added to the store."""
    from visfeedback.preferences.files import read_pairs

    rows = []
    for row in read_pairs(path):
        if row.p_a not in (0.0, 0.5, 1.0):
            raise InputError(f"{path}: a test has one right answer: a, b or tie, not {row.p_a:g}")
        pair = [_sample(file.read_bytes(), str(file), row.prompt) for file in (row.path_a, row.path_b)]
        store.add_drawn(pair)
        rows.append((pair[0].sample, pair[1].sample, row.p_a))
    return rows
