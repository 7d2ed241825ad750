"""Who takes part in `compare_methods.py`, and the stages of a training: its folder, its commands, how it is judged."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from visfeedback import config, plugins
from visfeedback.backbones import load as backbones
from visfeedback.cli import evaluate, loop, train
from visfeedback.cli.console import Console
from visfeedback.evaluation.ledger import Ledger, read_ledger
from visfeedback.loops._stages import Stages
from visfeedback.plugins import InputError, nearest
from visfeedback.training import openers
from visfeedback.types.files import write_json

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SEEDS = {
    "lee_rwr": ("--loop.seed", "--engine.seed", "--reward.seed"), "dreamsync": ("--loop.seed", "--engine.seed"),
    "human_d3po": ("--loop.seed", "--ask.seed"),
}  # fmt: skip
"""flags of a loop that its seed is given to"""
BRIEF = ("--evaluation.prompts", "shapes:heldout:7", "--evaluation.per-prompt", "1")
FIRST = {"lee_rwr": BRIEF, "dreamsync": BRIEF, "human_d3po": ("--ask.tastes", "None")}
"""further flags of a loop: those that evaluate by themselves do so on little, for everybody is judged alike afterwards;
and people only want what the prompt says, for that is what is judged"""

BEGUN = ("environment.json", "config.toml")
"""a run has either from its start on, and a killed one perhaps the first alone; the commands then want --resume"""


@dataclass(frozen=True)
class Entrant:
    """A method as it is trained here."""

    name: str
    preset: Path
    flags: tuple[str, ...]

    @property
    def table(self) -> dict[str, Any]:
        return config.read_toml(self.preset)

    @property
    def loop(self) -> str:
        """Name of the program; empty for a training."""
        return str(self.table.get("loop", {}).get("name", ""))

    def settings(self) -> Any:
        """Preset and flags as the command would read them. Raises InputError for what does not fit."""
        flags = ["--out", "somewhere", *self.flags]
        if self.loop:
            program = plugins.load("loops", self.loop)
            return loop._parse(program.Settings, self.table, self.preset, flags)[0]
        settings = train._parse(self.preset, flags)[0]
        openers.check(settings)
        return settings


def entrant(name: str, method: str, flags: str) -> Entrant:
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"{name!r} cannot name a contestant; expected letters, digits, - and _")
    known = presets()
    preset = Path(method) if method.endswith(".toml") else known.get(method)
    if preset is None:
        raise InputError(f"no method {method!r}{nearest(method, known)}")
    return Entrant(name, preset, tuple(shlex.split(flags)))


def presets() -> dict[str, Path]:
    """Method or loop -> its preset for the shapes world."""
    methods = {path.parent.name: path for path in CONFIGS.glob("*/shapes_sd.toml")}
    return methods | {name: CONFIGS / "loops" / f"{name}_shapes.toml" for name in SEEDS}


class Failed(Exception):
    """A command ended badly; says why in a line."""


class Job:
    """One method and seed: its folder and stages."""

    def __init__(self, entrant: Entrant, seed: int, options: argparse.Namespace, console: Console) -> None:
        self.entrant, self.seed, self.options, self.console = entrant, seed, options, console
        self.name = f"{entrant.name}-{seed}"
        self.folder: Path = options.out / self.name

    @property
    def done(self) -> bool:
        return "along" in Stages(self.folder).seconds

    @property
    def judged(self) -> bool:
        return "evaluate" in Stages(self.folder).seconds

    def recipe(self) -> dict[str, Any]:
        """What decides the training."""
        preset = self.entrant.preset
        return {
            "preset": preset.name, "sha256": sha256(preset.read_bytes()).hexdigest(), "flags": list(self.entrant.flags)
        }  # fmt: skip

    def check(self) -> None:
        """Raises InputError when the folder holds another training than the one asked for."""
        file = self.folder / "job.json"
        if not file.is_file():
            return
        for key, before in json.loads(file.read_text(encoding="utf-8")).items():
            if self.recipe()[key] != before:
                what = {"sha256": f"another text of {self.entrant.preset.name}"}.get(key, f"{key} {before}")
                raise InputError(f"{self.folder} was made with {what}; remove it, or name another --out or --variant")

    def run(self) -> str:
        """All stages that are not done; why it failed, or nothing."""
        write_json(self.folder / "job.json", self.recipe())
        once = Stages(self.folder).once
        try:
            if self.pairs:
                once("images", self.images)
                once("labels", self.labels)
            once("train", self.train)
            once("evaluate", self.evaluate)
            once("along", self.along)
        except (Failed, InputError) as error:
            return str(error)
        return ""

    @property
    def pairs(self) -> bool:
        """Whether pairs have to be made for it."""
        if self.entrant.loop:
            return False
        settings = self.entrant.settings()
        return openers.kind_of(settings) == "pairs" and not (settings.data.store or settings.data.pairs)

    @property
    def before(self) -> tuple[int, float]:
        """Images and seconds of the stages before training."""
        stages = Stages(self.folder)
        took = stages.seconds
        if "labels" not in took:
            return 0, 0.0
        return int(stages.once("images", dict)["images"]), took["images"] + took["labels"]

    @property
    def store(self) -> str:
        return f"sqlite:///{(self.folder / 'store.db').absolute()}"

    def images(self) -> dict[str, Any]:
        options, settings = self.options, self.entrant.settings()
        out = self.folder / "images"
        self.command("generate", "--model", settings.model.id, "--prompts", options.stored_prompts, "--per-prompt",
                     options.stored_per_prompt, "--steps", options.stored_steps, "--seed", self.seed, "--batch-size",
                     64, "--out", out)  # fmt: skip
        return {"images": len((out / "samples.jsonl").read_text(encoding="utf-8").splitlines())}

    def labels(self) -> dict[str, Any]:
        self.command("label", "--store", self.store, "--judge", self.options.stored_judge, "--images",
                     self.folder / "images", "--pairs", "all", "--seed", self.seed)  # fmt: skip
        return {"judge": self.options.stored_judge}

    def train(self) -> dict[str, Any]:
        out, name = self.folder / "run", self.entrant.loop
        flags = [word for flag in SEEDS.get(name, ("--engine.seed",)) for word in (flag, str(self.seed))]
        flags += FIRST.get(name, ())
        flags += ["--data.store", self.store] if self.pairs else []
        flags += self.keeping() if name in ("", "lee_rwr") else []
        begun = any((out / file).is_file() for file in BEGUN)
        resume = ["--resume"] if begun else []
        verb = "loop" if name else "train"
        self.command(verb, self.entrant.preset, "--out", out, *flags, *self.entrant.flags, *resume)
        return {}

    def keeping(self) -> list[str]:
        """Flags by which a training keeps its weights on the way."""
        parts = self.options.along
        if not parts:
            return []
        every = -(-self.entrant.settings().optim.steps // parts)
        return ["--engine.checkpoint-every", str(every), "--engine.drift-every", str(every), "--engine.keep",
                str(parts + 1)]  # fmt: skip

    def evaluate(self) -> dict[str, Any]:
        settings = self.settings(self.folder / "run" / read_ledger(self.folder / "run").adapter)
        evaluate.evaluate(settings, f"scripts/compare_methods.py {self.name}", self.console)
        return {}

    def along(self) -> dict[str, Any]:
        """Weights on the way, on fewer prompts."""
        run = self.folder / "run"
        ledger = read_ledger(run)
        for stop in ledger.stops[:-1] if self.options.along else ():
            out = self.folder / "along" / stop.name
            if (out / "summary.json").is_file():
                continue
            weights, adapter = run / stop.weights, run / stop.weights
            if weights.suffix == ".safetensors":
                adapter = self.export(ledger.model, run / ledger.adapter, weights, out / "adapter")
            fewer = {"prompts": self.options.along_prompts, "per_prompt": 1, "out": out}
            measured = evaluate.measure(self.settings(adapter).model_copy(update=fewer), self.console)
            write_json(out / "summary.json", measured)
        return {"stops": len(ledger.stops)}

    def export(self, model: str, final: Path, weights: Path, out: Path) -> Path:
        """A checkpoint's weights as an adapter: the shape is that of the final one."""
        backbone = backbones.load(model, adapter=str(final))
        backbone.save_adapter(out, state=load_file(weights))
        return out

    def settings(self, adapter: Path) -> Any:
        """How everybody is judged. The trained reward comes first: it is the one whose gaming is looked for."""
        options, ledger = self.options, read_ledger(self.folder / "run")
        rewards = dict.fromkeys([*([ledger.reward] if ledger.reward else []), *options.reward])
        out = self.folder / "evaluation"
        chosen = evaluate.EvaluateSettings(
            model=ledger.model, dtype=ledger.dtype, adapter=str(adapter), prompts=options.prompts,
            reward=tuple(rewards), out=out, per_prompt=options.per_prompt, seed=options.image_seed, batch_size=32,
        )  # fmt: skip
        self.share_base(ledger, out)
        for stop in ledger.stops[:-1]:
            self.share_base(ledger, self.folder / "along" / stop.name)
        return chosen

    def share_base(self, ledger: Ledger, out: Path) -> None:
        """The base model's pictures are drawn once for all: a link to the folder of its model."""
        drawn = self.options.out / "base" / sha256(f"{ledger.model} {ledger.dtype}".encode()).hexdigest()[:12]
        drawn.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "base").exists():
            (out / "base").symlink_to(os.path.relpath(drawn, out), target_is_directory=True)

    def command(self, *words: Any) -> None:
        """A verb of ours in a process of its own, into log.txt. Raises Failed, KeyboardInterrupt."""
        command = [sys.executable, "-m", "visfeedback", *map(str, words)]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            started = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, preexec_fn=with_us)
            with ended(started) as process:
                code = process.wait()
        if code:
            raise Failed(self.last_words() or f"exit code {code}")

    def last_words(self) -> str:
        """The newest line of the log that says what was wrong."""
        said = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(said) if line.strip()), "").removeprefix("error: ")


def with_us() -> None:
    """In the new process: a killed driver leaves no training behind that the next driver would find at work."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """When we are stopped inside the block, so is the process, which saves first."""
    try:
        yield process
    except BaseException:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=120)
        process.kill()
        raise
