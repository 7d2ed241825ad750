"""Which pairs are learned: from a feedback store or a pairs file, and their pictures as tensors.

To add a source: a branch in `load_pairs` that gives `Pair` records.
May import: types, plugins, store, preferences.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from visfeedback import store
from visfeedback.plugins import InputError
from visfeedback.preferences.files import read_pairs
from visfeedback.preferences.pairs import pairs_from_feedback
from visfeedback.store.images import decode, read
from visfeedback.training.settings import Data
from visfeedback.types.addresses import without_passwords
from visfeedback.types.records import Frozen, text_id


class Pair(Frozen):
    """One thing to learn: for this prompt, this image is better than that one."""

    id: str
    """names the pair's noise; the same in every run on the same preferences"""
    prompt: str
    winner: str
    """names the image's content"""
    loser: str
    winner_path: str
    """absolute"""
    loser_path: str
    probability: float = 1.0
    """that the winner is better, .5 to 1"""
    weight: float = 1.0


def load_pairs(data: Data) -> list[Pair]:
    """The pairs that ``data`` names, in an order that depends on them alone.

    Raises InputError when there is no store, file or image, or when nothing is left to learn from.
    """
    if data.store and data.pairs:
        raise InputError(
            "data.store and data.pairs are both given; learn from one, and empty the other: --data.pairs ''"
        )
    if not data.store and not data.pairs:
        raise InputError("nothing to learn from; expected --data.store sqlite:///prefs.db or --data.pairs FILE.jsonl")
    pairs, dropped = _from_store(data) if data.store else _from_file(data)
    if not pairs:
        raise InputError(_nothing(data, dropped))
    return list(_numbered(pairs))


def _nothing(data: Data, dropped: Mapping[str, int]) -> str:
    why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    source = without_passwords(data.store) or data.pairs
    of_what = f" for criterion {data.criterion!r}" if data.store else ""
    left_out = f" (left out: {why})" if why else ""
    return (
        f"{source} holds no preferences{of_what}{left_out}; "
        "make some with: visfeedback label --store URL --judge J --images SRC"
    )


def _from_store(data: Data) -> tuple[list[Pair], dict[str, int]]:
    with store.open(data.store, create=False) as opened:
        paths: dict[str, str] = {}
        prompts: dict[str, str] = {}
        for sample in opened.samples():
            paths[sample.id], prompts[sample.prompt_id] = sample.path, sample.prompt
        preferences, dropped = pairs_from_feedback(opened.feedback(), criterion=data.criterion, ties=data.ties)
    known = [p for p in preferences if p.winner in paths and p.loser in paths and p.prompt_id in prompts]
    if len(known) < len(preferences):
        dropped["without images in the store"] = len(preferences) - len(known)
    pairs = [
        Pair(
            id="", prompt=prompts[p.prompt_id], winner=p.winner, loser=p.loser,
            winner_path=paths[p.winner], loser_path=paths[p.loser], probability=p.probability, weight=p.weight,
        )
        for p in known
    ]  # fmt: skip
    return pairs, dropped


def _from_file(data: Data) -> tuple[list[Pair], dict[str, int]]:
    rows = read_pairs(Path(data.pairs))
    ids = {path: content_id(path) for path in dict.fromkeys(p for row in rows for p in (row.path_a, row.path_b))}
    pairs: list[Pair] = []
    ties = 0
    for row in rows:
        if row.p_a == 0.5 and data.ties == "drop":
            ties += 1
            continue
        winner, loser = (row.path_a, row.path_b) if row.p_a >= 0.5 else (row.path_b, row.path_a)
        pairs.append(
            Pair(
                id="", prompt=row.prompt, winner=ids[winner], loser=ids[loser],
                winner_path=str(winner.absolute()), loser_path=str(loser.absolute()),
                probability=max(row.p_a, 1 - row.p_a),
            )
        )  # fmt: skip
    return pairs, {"tie": ties} if ties else {}


def content_id(path: Path) -> str:
    """sha256 hex of a file's bytes."""
    return hashlib.sha256(read(path)).hexdigest()


def _numbered(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Give ids; a comparison that occurs twice gets two."""
    seen: Counter[str] = Counter()
    for pair in pairs:
        name = text_id(pair.prompt, pair.winner, pair.loser)
        seen[name] += 1
        yield pair.model_copy(update={"id": name if seen[name] == 1 else f"{name}-{seen[name]}"})


def split(pairs: Sequence[Pair], holdout: float) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs held out. Whole prompts are held out, chosen by their text alone.

    Raises InputError when either side would be empty although ``holdout`` is not 0.
    """
    if not holdout:
        return list(pairs), []
    prompts = sorted({pair.prompt for pair in pairs}, key=lambda prompt: text_id("holdout", prompt))
    out = set(prompts[: round(holdout * len(prompts))])
    train, held = [p for p in pairs if p.prompt not in out], [p for p in pairs if p.prompt in out]
    if not train or not held:
        raise InputError(f"data.holdout = {holdout} of {len(prompts)} prompts leaves one side empty; change it")
    return train, held


def pixels(path: Path, side: int, mirrored: bool) -> Tensor:
    """(3, side, side) in [0,1]: short side resized to ``side``, centre cropped. InputError when missing or damaged."""
    image = decode(read(path), path).convert("RGB")
    if image.size != (side, side):
        scale = side / min(image.size)
        size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        image = image.resize(size, Image.Resampling.LANCZOS).crop((left, top, left + side, top + side))
    tensor = torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1).float() / 255
    return tensor.flip(-1) if mirrored else tensor
