"""What a program of rounds writes down: one line for each finished round, and whether a folder is its own.

May import: types, config, report.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, Field

from visfeedback import config
from visfeedback.plugins import InputError
from visfeedback.report.tables import first_difference
from visfeedback.types.files import append_jsonl, read_jsonl, write_atomic
from visfeedback.types.records import Frozen

ROWS = "rounds.jsonl"


class Round(Frozen):
    """One round of one arm on one prompt. Lists have an entry for each image, in the order of ``files``."""

    prompt_id: str
    prompt: str
    arm: str
    round: int
    """0 = before any feedback"""
    files: tuple[str, ...]
    """relative to the folder"""
    seeds: tuple[int, ...]
    preferences: tuple[float, ...]
    """the user's"""
    right: tuple[bool, ...] = ()
    """whether all the prompt says is there, where a world's verifier can tell"""
    liked: tuple[str, ...] = ()
    """files liked in this round, for the rounds after it"""
    disliked: tuple[str, ...] = ()
    to_liked: float | None = None
    """mean cosine to what was liked in the rounds of the fabric arm before this one"""
    to_disliked: float | None = None
    diversity: float | None = None
    """mean RMS difference between the round's images, in [0, 1]"""
    alike: float | None = None
    """mean cosine between the round's images"""
    from_target: float | None = None
    """mean RMS difference of pixels between the round's images and the hidden one, in [0, 1]"""
    picked: dict[str, float | None] = Field(default_factory=dict)
    """of the images that best_of_n shows: the measures above, from to_liked on"""
    passes: int = 0
    """reference images that went through the denoiser"""
    seconds: float = 0.0
    """of drawing"""


class Journal:
    """The finished rounds of a folder."""

    def __init__(self, out: Path) -> None:
        self.out, self.file = out, out / ROWS
        rows = list(read_jsonl(self.file, Round)) if self.file.exists() else []
        self._rows = {(row.prompt_id, row.arm, row.round): row for row in rows}

    def get(self, prompt_id: str, arm: str, number: int) -> Round | None:
        """The round, if it is finished and its images are there."""
        row = self._rows.get((prompt_id, arm, number))
        return row if row and all((self.out / name).is_file() for name in row.files) else None

    def add(self, row: Round) -> Round:
        append_jsonl(self.file, [row])
        self._rows[row.prompt_id, row.arm, row.round] = row
        return row

    @property
    def rows(self) -> list[Round]:
        return list(self._rows.values())


def claim(out: Path, settings: BaseModel, resume: bool, may_change: Collection[str] = ()) -> None:
    """Make the folder with its config.toml. Raises InputError for one that is not empty, unless it is resumed with the
    same settings; those named in ``may_change`` (dotted) say nothing of what is in it."""
    file, text = out / "config.toml", config.to_toml(settings)
    if not out.is_dir() or not any(out.iterdir()):
        write_atomic(file, text)
    elif not resume:
        raise InputError(f"{out} is not empty; add --resume to go on with it, or give another --out")
    elif not file.is_file():
        raise InputError(f"{out} holds no loop to go on with (no config.toml); give another --out")
    # Built again, so that knobs that are newer than the folder have their defaults.
    elif found := first_difference(
        tomllib.loads(config.to_toml(config.build(type(settings), config.read_toml(file), str(file)))),
        tomllib.loads(text), may_change,
    ):  # fmt: skip
        key, before, now = found
        raise InputError(f"{file} has {key} = {before!r}, now it is {now!r}; repeat it, or give another --out")
