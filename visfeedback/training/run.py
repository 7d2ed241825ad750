"""The run folder: what stands in it, and whether a run may begin or go on there.

  config.toml (resolved) · environment.json · metrics.jsonl · cache/ · checkpoints/
  pairs.jsonl, images.jsonl or prompts.jsonl (what is learned), real.jsonl (what is to be kept)
  adapter/ (diffusers LoRA) · samples/ · summary.json · report.html · card.md
Every file is written under a temporary name and renamed; metrics.jsonl is appended to, and cut back on resume.
May import: types, config, plugins, report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from visfeedback import config
from visfeedback.plugins import InputError
from visfeedback.report.tables import flat
from visfeedback.training.moved import PLACES, came_along
from visfeedback.training.settings import TrainSettings
from visfeedback.types.addresses import without_passwords
from visfeedback.types.files import cut_torn_line, write_atomic

FREE = {
    "engine.checkpoint_every", "engine.keep", "engine.log_every", "engine.drift_every", "engine.trackers",
    "eval.prompts", "eval.count", "eval.every",
}  # fmt: skip
"""Keys that leave the trained weights as they are: they may change on resume."""


class Run:
    """Paths of one run folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.toml"
        self.environment = self.root / "environment.json"
        self.pairs = self.root / "pairs.jsonl"
        self.images = self.root / "images.jsonl"
        self.prompts = self.root / "prompts.jsonl"
        self.real = self.root / "real.jsonl"
        self.metrics = self.root / "metrics.jsonl"
        self.cache = self.root / "cache"
        self.checkpoints = self.root / "checkpoints"
        self.adapter = self.root / "adapter"
        self.samples = self.root / "samples"
        self.summary = self.root / "summary.json"
        self.report = self.root / "report.html"
        self.card = self.root / "card.md"

    @property
    def empty(self) -> bool:
        """Nothing but hidden files (a killed writer's temporary names), trackers, and tables, never wrong."""
        found = list(self.root.iterdir()) if self.root.exists() else []
        return all(path.name.startswith(".") or path.name in {"cache", "trackers"} for path in found)


def check_folder(run: Run, settings: TrainSettings, resume: bool) -> None:
    """Raises InputError when the folder is in use and ``resume`` is off, is no run folder, or holds other settings."""
    if run.root.exists() and not run.root.is_dir():
        raise InputError(f"--out {run.root} is a file; expected a folder")
    if run.empty:
        return
    if not resume:
        raise InputError(f"{run.root} is not empty; add --resume to go on with the run in it, or name another --out")
    if not run.config.exists() and not run.environment.exists():
        raise InputError(f"{run.root} holds no run (no config.toml); name another --out")
    if run.config.exists():
        check_same(config.read_toml(run.config), settings, run.config)


def write_settings(run: Run, settings: TrainSettings) -> None:
    """config.toml, all defaults filled in."""
    write_atomic(run.config, config.to_toml(public(settings)))


def public(settings: TrainSettings) -> TrainSettings:
    """The settings as every file of the folder shows them, for the folder may be published: without a password. A run
    goes on from its pairs.jsonl or images.jsonl, so nothing there needs it."""
    store = without_passwords(settings.data.store)
    return settings.model_copy(update={"data": settings.data.model_copy(update={"store": store})})


def check_same(recorded: Mapping[str, Any], settings: TrainSettings, source: Path) -> None:
    """Raises InputError naming the first key whose change would change the result."""
    now = dict(flat(public(settings).model_dump(mode="json")))
    before: dict[str, Any] = {"method.name": recorded.get("method", {}).get("name")}
    if before["method.name"] == now["method.name"]:  # then the same model reads both, and fills in newer knobs
        before = dict(flat(public(config.build(type(settings), recorded, str(source))).model_dump(mode="json")))
    for key in before:
        if now[key] != before[key] and not _may_change(key, before, now, source.parent):
            raise InputError(
                f"the run in {source.parent} was started with {key} = {before[key]!r}, now it is {now[key]!r}; "
                "resume with the same settings, or name another --out"
            )


def _may_change(key: str, before: Mapping[str, Any], now: Mapping[str, Any], root: Path) -> bool:
    """More steps are fine where the learning rate does not depend on how many there are; and files that were moved
    together with the run."""
    if key == "optim.steps":
        return before["optim.schedule"] == "constant_with_warmup" and now[key] > before[key]
    return key in FREE or (key in PLACES and came_along(before[key], now[key], root))


class Metrics:
    """metrics.jsonl: one row per logged step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_back(self, step: int) -> None:
        """Drop rows after ``step``, so that no step stands twice."""
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def append(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Rows become visible at once to whoever follows the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({k: v if math.isfinite(v) else None for k, v in r.items()}) + "\n" for r in rows)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All rows; a torn last line is dropped from the file."""
    if not path.exists():
        return []
    cut_torn_line(path)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
