"""Training runs of the page, as they stand on disk: nothing is remembered in the server, so a restart loses nothing.

  RUNS/NAME/  train/ (settings.toml and the job) · run/ (the run folder of `visfeedback train`)
              judge-HASH/ (one comparison of base and tuned: its prompts, its job and out/)
May import: plugins, prompts, types, its neighbours.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import threading
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Any

from visfeedback import plugins, prompts
from visfeedback.app import train_presets
from visfeedback.app.train_jobs import Job
from visfeedback.app.train_presets import Knobs
from visfeedback.plugins import InputError
from visfeedback.types.files import write_atomic, write_json
from visfeedback.types.records import Frozen, text_id

REWARD = re.compile(r"[a-z0-9_]+(:[A-Za-z0-9._-]+)?")
"""a reward by name; a path would make the server read whatever somebody types"""
MOST_PROMPTS = 2000
_starting = threading.Lock()


class Judging(Frozen):
    """How base and tuned are compared."""

    prompts: str
    """one a line, or shapes:heldout:64"""
    per_prompt: int = 2
    """images of each prompt on each side"""
    rewards: str = ""
    """names with commas between; prompts of a world are judged by its verifier"""

    @property
    def names(self) -> list[str]:
        """The rewards. InputError for what is not a name."""
        found = [name.strip() for name in self.rewards.split(",") if name.strip()]
        wrong = next((name for name in found if not REWARD.fullmatch(name)), None)
        if wrong is not None:
            raise InputError(f"reward {wrong!r:.40}; expected names like pickscore, hpsv2 with commas between")
        return found

    @property
    def lines(self) -> list[str]:
        """The prompts, each once."""
        return list(dict.fromkeys(line.strip() for line in self.prompts.splitlines() if line.strip()))

    @property
    def world(self) -> bool:
        """Whether the prompts are those of a world."""
        return len(self.lines) == 1 and " " not in self.lines[0] and plugins.split_reference(self.lines[0]) is not None


class TrainRun:
    """One run: its training and its comparisons."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, root.name
        self.out = root / "run"
        self.train = Job(root / "train")
        self.settings = self.train.folder / "settings.toml"

    # learning

    def start(self, tables: dict[str, Any], environment: dict[str, str]) -> None:
        train_presets.write(self.settings, tables)
        self.train.start(["train", str(self.settings), "--out", str(self.out)], environment)

    def resume(self, environment: dict[str, str]) -> None:
        """Go on where it stopped. InputError when there is nothing to go on with."""
        if self.train.state not in ("stopped", "failed"):
            raise InputError(f"{self.name} is {self.train.state}; only what has stopped can go on")
        self.train.start(["train", str(self.settings), "--out", str(self.out), "--resume"], environment)

    @cached_property
    def tables(self) -> dict[str, Any]:
        """What was asked for."""
        try:
            return tomllib.loads(self.settings.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError):
            return {}

    @property
    def steps(self) -> int:
        return int(self.tables.get("optim", {}).get("steps", 0))

    @property
    def model(self) -> str:
        return str(self.tables.get("model", {}).get("id", ""))

    @property
    def adapter(self) -> Path | None:
        """The folder of the trained LoRA, once it is there."""
        folder = self.out / "adapter"
        return folder if folder.is_dir() and any(folder.iterdir()) else None

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; a line that is being written is left for the next time."""
        try:
            lines = (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError):
            return []
        return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]

    def previews(self) -> dict[int, dict[str, Path]]:
        """step -> prompt -> picture; step 0 is the base model."""
        found: dict[int, dict[str, Path]] = {}
        for listed in (self.out / "samples").glob("step-*/prompts.json"):
            number = listed.parent.name.removeprefix("step-")
            prompts = json.loads(listed.read_text(encoding="utf-8"))
            if number.isdecimal():
                found[int(number)] = {
                    prompt: listed.parent / f"{place:02d}.png" for place, prompt in enumerate(prompts)
                }
        return dict(sorted(found.items()))

    def learned_prompts(self) -> set[str]:
        """Texts of the prompts of its pairs."""
        try:
            lines = (self.out / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return set()
        return {json.loads(line)["prompt"] for line in lines if line.strip()}

    def archive(self, folder: Path) -> Path:
        """The adapter as a zip in ``folder``; one that is newer than the adapter is used again."""
        if self.adapter is None:
            raise InputError(f"{self.name} has no adapter yet; wait until its training has ended")
        file = folder / f"{self.name}-adapter.zip"
        newest = max(path.stat().st_mtime for path in self.adapter.iterdir())
        if not file.is_file() or file.stat().st_mtime < newest:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as making:
                made = shutil.make_archive(f"{making}/adapter", "zip", self.adapter.parent, self.adapter.name)
                Path(made).replace(file)
        return file

    # judging

    def judgings(self) -> list[Path]:
        """Folders of its comparisons, newest first."""
        found = [path for path in self.root.glob("judge-*") if (path / "job.json").is_file()]
        return sorted(found, key=lambda path: (path / "job.json").stat().st_mtime, reverse=True)

    def judge(self, asked: Judging, seed: int = 0) -> Path:
        """Compare base and tuned; the same question again goes on where it stopped. Returns the comparison's folder."""
        if self.adapter is None:
            raise InputError(f"{self.name} has no adapter yet; wait until its training has ended")
        if not asked.lines or len(asked.lines) > MOST_PROMPTS:
            raise InputError(f"{len(asked.lines)} prompts; expected 1 to {MOST_PROMPTS}, one a line")
        if not asked.names and not asked.world:
            raise InputError("nobody judges: name a reward, such as pickscore, or take prompts of a world")
        folder = (
            self.root / f"judge-{text_id(asked.model_dump_json(), str(seed), str(self.adapter.stat().st_mtime_ns))}"
        )
        source = asked.lines[0] if asked.world else str(write_atomic(folder / "prompts.txt", "\n".join(asked.lines)))
        write_json(folder / "asked.json", {"pictures": 2 * asked.per_prompt * len(prompts.load(source))})
        command = ["evaluate", "--model", self.model, "--adapter", str(self.adapter), "--prompts", source]
        command += ["--per-prompt", str(asked.per_prompt), "--seed", str(seed), "--out", str(folder / "out")]
        Job(folder).start([*command, *(["--reward", *asked.names] if asked.names else [])])
        return folder


def drawn(folder: Path) -> tuple[int, int]:
    """Pictures of a comparison that are there, and how many there will be: of base and tuned model together."""
    try:
        whole = int(json.loads((folder / "asked.json").read_text(encoding="utf-8"))["pictures"])
    except (OSError, ValueError, KeyError, TypeError):
        whole = 0
    there = sum(1 for side in ("base", "tuned") for _ in (folder / "out" / side / "images").glob("*.png"))
    return there, max(whole, there)


def runs(folder: Path) -> list[TrainRun]:
    """All runs, newest first."""
    found = [path for path in folder.glob("*") if (path / "train" / "job.json").is_file()]
    return [TrainRun(path) for path in sorted(found, key=_age, reverse=True)]


def _age(path: Path) -> float:
    return (path / "train" / "settings.toml").stat().st_mtime


def find(folder: Path, name: str) -> TrainRun:
    """A run by its name. InputError for one that is not there: whatever somebody typed is never a path."""
    found = next((run for run in runs(folder) if run.name == name), None)
    if found is None:
        raise InputError(f"no run {name!r:.70}; start one first")
    return found


def free_name(folder: Path, stem: str = "dpo") -> str:
    """The first of dpo-1, dpo-2, ... that is free."""
    return next(f"{stem}-{n}" for n in range(1, 100_000) if not (folder / f"{stem}-{n}").exists())


def busy(folder: Path) -> str:
    """What runs in any of the runs, in words; empty when nothing does. One at a time: they share the machine."""
    for run in runs(folder):
        if run.train.running:
            return f"{run.name} is being trained"
        if any(Job(path).running for path in run.judgings()):
            return f"{run.name} is being compared with its base"
    return ""


def begin(folder: Path, model: str, store: str, chosen: Knobs, pairs: int, prompts: int) -> TrainRun:
    """Start a new run. InputError when the name is taken or something runs already."""
    with _starting:
        _check_idle(folder)
        root = folder / chosen.name
        if root.exists():
            raise InputError(f"there is a run {chosen.name!r} already; give another name, or go on with it")
        preset, (source, secret) = train_presets.preset_for(model), train_presets.source_of(store)
        run = TrainRun(root)
        run.start(train_presets.settings(model, source, chosen, pairs, prompts, preset), secret)
        return run


def go_on(folder: Path, name: str, store: str) -> TrainRun:
    """Resume a run."""
    with _starting:
        _check_idle(folder)
        run = find(folder, name)
        run.resume(train_presets.source_of(store)[1])
        return run


def compare(folder: Path, name: str, asked: Judging) -> Path:
    """Compare base and tuned of a run."""
    with _starting:
        _check_idle(folder)
        return find(folder, name).judge(asked)


def _check_idle(folder: Path) -> None:
    if said := busy(folder):
        raise InputError(f"{said}; one thing at a time, for they share the machine: wait, or stop it")
