"""Ask a judge which of two images is better, and keep the answers in the store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from visfeedback.cli.console import Console, PartialFailure, parse
from visfeedback.plugins import InputError
from visfeedback.types.records import Feedback, Frozen, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

    from visfeedback.feedback.queue import Pair
    from visfeedback.store import Store
    from visfeedback.types.protocols import Judge

BATCH = 32  # answers that one transaction writes
CHUNK = 64  # images added at a time


class Label(Frozen):
    store: str
    """where answers go: sqlite:///prefs.db or a PostgreSQL URL; made when it is not there"""
    judge: str
    """who answers: verifier:shapes or simulated:shapes"""
    images: str
    """folder with samples.jsonl, a samples.jsonl, or `store` for what the store holds"""
    pairs: Literal["random", "all", "active"] = "random"
    """which pairs to ask: random and all are spread evenly over the prompts, active are those that tell most"""
    n: int | None = Field(default=None, ge=1)
    """how many pairs the store shall hold of this plan; all there are when left out"""
    seed: int = Field(default=0, ge=0)
    """draws the pairs and the sides, and names the simulated person"""
    noise: float | None = None
    """simulated people: probability of a slip"""
    tie_band: float | None = None
    """images closer than this are a tie"""
    side_bias: float | None = None
    """simulated people: what the left image gets for nothing"""


def run(args: list[str], console: Console) -> dict[str, Any]:
    from visfeedback import feedback, store

    settings = parse(Label, args, prog="visfeedback label", description=__doc__ or "")
    began = time.perf_counter()
    judge = feedback.load(settings.judge, **_knobs(settings))
    listed, root = _listed(settings.images)
    with store.open(settings.store, create=settings.images != "store") as opened:
        samples, failed = _add(opened, listed, root, console) if root else (list(opened.samples()), [])
        plan = _plan(samples, settings, opened)
        open_pairs = _unanswered(plan, opened.feedback(judge=judge.name))
        choices, refused = _ask(opened, judge, open_pairs, console)
    result = {
        "command": "label", "store": settings.store, "judge": judge.name, "seed": settings.seed,
        "samples": len(samples), "pairs": len(plan), "already_answered": len(plan) - len(open_pairs),
        "asked": choices.total(), "choices": dict(sorted(choices.items())), "seconds": time.perf_counter() - began,
    }  # fmt: skip
    _report(result, failed + refused, console)
    return result


def _plan(samples: list[Sample], settings: Label, opened: Store) -> list[Pair]:
    from visfeedback.feedback import active, queue

    if settings.pairs != "active":
        return queue.pairs(samples, settings.pairs, settings.n, settings.seed)
    if settings.n is None:
        raise InputError("--pairs active chooses the pairs that tell most; say how many with --n")
    return active.active_pairs(samples, opened.feedback(), settings.n, settings.seed)


def _knobs(settings: Label) -> dict[str, Any]:
    """The flags that were given, for the judge."""
    return settings.model_dump(include={"seed", "noise", "tie_band", "side_bias"}, exclude_none=True)


def _listed(source: str) -> tuple[list[Sample], Path | None]:
    """The samples of a list and the folder that their paths start from; no folder for `store`."""
    from visfeedback.types.files import read_jsonl

    if source == "store":
        return [], None
    path = Path(source)
    if path.is_dir():
        path = path / "samples.jsonl"
    if not path.is_file():
        raise InputError(
            f"no file {path}; visfeedback generate --out {path.parent} makes images and their samples.jsonl"
        )
    return list(read_jsonl(path, Sample)), path.parent


def _add(store: Store, listed: Sequence[Sample], root: Path, console: Console) -> tuple[list[Sample], list[str]]:
    """Put images into the store; returns the samples that are good, and a line for each that is not."""
    from visfeedback.store.rows import chunks

    failed: list[str] = []
    good: list[Sample] = []
    with console.progress("adding images", len(listed)) as advance:
        for part in chunks(listed, CHUNK):
            good += _add_part(store, part, root, failed)
            advance(len(part))
    if listed and not good:
        raise InputError(failed[0])
    return good, failed


def _add_part(store: Store, part: list[Sample], root: Path, failed: list[str]) -> list[Sample]:
    """All in one transaction; only when an image is bad, one by one."""
    from visfeedback.store.images import BadImage

    try:
        store.add_samples(part, root)
        return part
    except BadImage as error:
        if len(part) == 1:
            failed.append(str(error))
            return []
    return [sample for one in part for sample in _add_part(store, [one], root, failed)]


def _unanswered(plan: Iterable[Pair], answers: Iterable[Feedback]) -> list[Pair]:
    """Pairs that this judge has not answered yet, whichever way round."""
    done = {(answer.prompt_id, frozenset(answer.sample_ids)) for answer in answers if answer.kind == "pair"}
    return [(a, b) for a, b in plan if (a.prompt_id, frozenset((a.id, b.id))) not in done]


def _ask(store: Store, judge: Judge, pairs: Sequence[Pair], console: Console) -> tuple[Counter[str], list[str]]:
    """Answers go to disk in batches, and what is pending also when the user interrupts."""
    from visfeedback.store.rows import prompt_of

    opened = _opener(store)
    choices, refused, pending = Counter[str](), list[str](), list[Feedback]()
    with console.progress(f"asking {judge.name}", len(pairs)) as advance:
        try:
            for a, b in pairs:
                try:
                    answer = judge.compare(prompt_of(a), (a, b), (opened(a.id), opened(b.id)))
                except InputError as error:
                    refused.append(f"{a.prompt!r}, images {a.id[:12]} and {b.id[:12]}: {error}")
                else:
                    pending.append(answer)
                    choices[answer.choice or answer.kind] += 1
                advance(1)
                if len(pending) >= BATCH:
                    store.add_feedback(pending)
                    pending.clear()
        finally:
            store.add_feedback(pending)  # after an interrupt inside the loop's own write this adds nothing twice
    if refused and not choices:
        raise InputError(refused[0])
    return choices, refused


def _opener(store: Store) -> Callable[[str], Image]:
    """Sample id -> decoded image; an image is in several pairs, so some are kept."""
    from visfeedback.store.images import decode

    @lru_cache(maxsize=256)
    def opened(sample_id: str) -> Image:
        return decode(store.image_bytes(sample_id), store.image_path(sample_id)).convert("RGB")

    return opened


def _report(result: dict[str, Any], failed: list[str], console: Console) -> None:
    console.info(
        f"{result['judge']} answered {result['asked']} pairs, {result['already_answered']} were answered before; "
        f"the store is {result['store']}"
    )
    for line in failed:
        console.warn(line)
    if failed:
        raise PartialFailure(f"{len(failed)} items failed, the rest is done; first: {failed[0]}", result, failed)
