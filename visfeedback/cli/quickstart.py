"""Run the whole river once on the small world that ships with the package: offline, on a CPU, in minutes.

Images are drawn, simulated people compare them, a LoRA learns from their answers, and base and tuned model are judged
on prompts that neither has seen. Every stage goes on where it stopped when the same command is typed again.
"""

from __future__ import annotations

import json
import random
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from visfeedback.cli.claim import claim
from visfeedback.cli.console import Console, parse
from visfeedback.cli.evaluate import EvaluateSettings
from visfeedback.types.records import Frozen, Prompt

if TYPE_CHECKING:
    from visfeedback.report.blocks import Section
    from visfeedback.training.settings import TrainSettings


AT_ONCE = 32  # pictures of 64 x 64 pixels that a process draws together
PROCESSES = 8  # at most so many draw side by side, a core each
TIMES = (0.4, 1.0)  # what a picture shows is decided here
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")  # attention is few here


class QuickstartSettings(Frozen):
    """Sizes and strengths; the training numbers are those of configs/dpo/shapes_sd_quick.toml."""

    out: Path = Path("quickstart")
    """folder for everything: report.html, summary.json, adapter/, store.db"""
    seed: int = Field(default=0, ge=0)
    """prompts, images, answers, training and intervals follow from it"""
    model: str = "shapes:sd"
    """the model to improve"""
    train_prompts: int = Field(default=256, ge=1)
    """training prompts, drawn by the seed, evenly over the categories"""
    train_images: int = Field(default=6, ge=2)
    """images of each of them; all pairs among them are compared"""
    train_drawing_steps: int = Field(default=10, ge=1)
    """denoising steps of these images: half of the model's own steps show the same habits in half the time"""
    noise: float = Field(default=0.05, ge=0, le=1)
    """how often a simulated person slips"""
    tie_band: float = Field(default=0.08, ge=0)
    """images closer in worth than this are a tie"""
    steps: int = Field(default=600, ge=1)
    """training steps"""
    lr: float = Field(default=1e-3, gt=0)
    """learning rate"""
    beta: float = Field(default=60.0, gt=0)
    """strength of the pull to the base model"""
    rank: int = Field(default=16, ge=1)
    """width of the LoRA"""
    batch_size: int = Field(default=48, ge=1)
    """pairs a training step"""
    test_prompts: int = Field(default=384, ge=1)
    """held-out prompts"""
    test_images: int = Field(default=2, ge=1)
    """images of each of them on each side"""
    reward: tuple[str, ...] = ("shapes_clip",)
    """rewards that look on beside the verifier"""
    drawing_steps: int | None = Field(default=None, ge=1)
    """denoising steps of the held-out images; the model's own when left out"""


def run(args: list[str], console: Console) -> dict[str, Any]:
    settings = parse(QuickstartSettings, args, "visfeedback quickstart", __doc__ or "")
    claim(settings.out, settings.model_dump(mode="json", exclude={"out"}))
    river = River(settings, shlex.join(["visfeedback", "quickstart", *args]), console)
    if river.summary_file.is_file():
        console.info(f"{settings.out} is finished already; another --out runs it again")
        summary = json.loads(river.summary_file.read_text(encoding="utf-8"))
    else:
        summary = river.flow()
    river.say(summary)
    return summary


class River:
    """The stages, each of which leaves its result in the folder and does nothing twice."""

    def __init__(self, settings: QuickstartSettings, command: str, console: Console) -> None:
        self.settings = settings
        self.command = command
        self.console = console
        out = settings.out
        self.images, self.training, self.pictures = out / "images", out / "training", out / "evaluation"
        self.adapter, self.summary_file, self.report = out / "adapter", out / "summary.json", out / "report.html"
        self.store = f"sqlite:///{out / 'store.db'}"
        self._clock = out / "seconds.json"

    def flow(self) -> dict[str, Any]:
        """All stages in order; returns the summary."""
        s = self.settings
        with self._stage(1, f"drawing {s.train_prompts * s.train_images} training images"):
            self.draw()
        with self._stage(2, "simulated people compare them"):
            answers = self.ask()
        with self._stage(3, "turning answers into preferences"):
            preferences, dropped = self.prefer()
        said = f"{answers} answers became {preferences} preferences{_left_out(dropped)}"
        self.console.info(f"    {said}")
        with self._stage(4, f"learning from them: Diffusion-DPO, {s.steps} steps"):
            self.train()
        with self._stage(5, f"drawing and judging {2 * s.test_prompts * s.test_images} held-out images"):
            compared = self.compare()
        with self._stage(6, "writing the report"):
            return self.write(compared, said)

    @contextmanager
    def _stage(self, number: int, title: str) -> Iterator[None]:
        """Say what begins, and add the time it took, also of a stage that was interrupted, to the clock."""
        from visfeedback.types.files import write_json

        self.console.info(f"{number}/6 {title}")
        started = time.monotonic()
        try:
            yield
        finally:
            write_json(self._clock, self.seconds | {title: self.seconds.get(title, 0.0) + time.monotonic() - started})

    @property
    def seconds(self) -> dict[str, float]:
        """Title of each stage -> seconds it took so far, over all runs of the command."""
        return json.loads(self._clock.read_text(encoding="utf-8")) if self._clock.is_file() else {}

    # ------------------------------------------------------------------------------------------------- the stages

    def draw(self) -> None:
        """``images/``: several images of each training prompt, with samples.jsonl."""
        from visfeedback.backbones.load import load_pipeline
        from visfeedback.plugins import world
        from visfeedback.sampling.generate import GenerateSettings, generate

        s = self.settings
        prompts = evenly(world("shapes").prompts("train"), s.train_prompts, s.seed)
        drawing = GenerateSettings(steps=s.train_drawing_steps, batch_size=AT_ONCE)
        generate(
            load_pipeline(s.model), prompts, s.train_images, s.seed, self.images, drawing, self.console.progress,
            processes=PROCESSES,
        )  # fmt: skip

    def ask(self) -> int:
        """``store.db``: the images and what simulated people say about their pairs; returns the number of answers."""
        from visfeedback.cli import label

        s = self.settings
        asked = label.run(
            ["--store", self.store, "--images", str(self.images), "--judge", "simulated:shapes", "--pairs", "all",
             "--seed", str(s.seed), "--noise", str(s.noise), "--tie-band", str(s.tie_band)],
            self.console,
        )  # fmt: skip
        return asked["asked"] + asked["already_answered"]

    def prefer(self) -> tuple[int, dict[str, int]]:
        """How many preferences training will find in the store, and what is left out, by reason."""
        from visfeedback import store
        from visfeedback.preferences.pairs import pairs_from_feedback

        with store.open(self.store, create=False) as opened:
            preferences, dropped = pairs_from_feedback(opened.feedback())
        return len(preferences), dropped

    def train(self) -> None:
        """``training/``, a run folder, and ``adapter/``, its result."""
        from visfeedback.training.fit import fit

        if not (self.training / "summary.json").is_file():
            started = self.training.is_dir() and any(self.training.iterdir())
            fit(self.training_settings(), self.training, resume=started, progress=self.console.progress)
        if not self.adapter.is_dir():
            half = self.adapter.with_name(".adapter")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(self.training / "adapter", half)
            half.rename(self.adapter)

    def training_settings(self) -> TrainSettings:
        """What `visfeedback train` would be told."""
        from visfeedback.training.settings import settings_for

        s = self.settings
        return settings_for("dpo").model_validate({
            "model": {"id": s.model},
            "method": {"name": "dpo", "beta": s.beta},
            "data": {"store": self.store, "group": True, "times": TIMES},
            "optim": {"lr": s.lr, "steps": s.steps, "batch_size": s.batch_size, "schedule": "cosine", "warmup": 10},
            "lora": {"rank": s.rank, "targets": TARGETS},
            "engine": {"seed": s.seed, "checkpoint_every": 50},
        })  # fmt: skip

    def compare(self) -> dict[str, Any]:
        """``evaluation/``: base and tuned on held-out prompts, judged by the verifier, which makes no slips."""
        from visfeedback.cli import evaluate

        return evaluate.measure(self.evaluation_settings(), self.console)

    def evaluation_settings(self) -> EvaluateSettings:
        """What `visfeedback evaluate` would be told."""
        s = self.settings
        return EvaluateSettings(
            model=s.model, adapter=str(self.adapter), prompts=f"shapes:heldout:{s.test_prompts}", reward=s.reward,
            judge="verifier:shapes", out=self.pictures, per_prompt=s.test_images, seed=s.seed, steps=s.drawing_steps,
            batch_size=AT_ONCE, processes=PROCESSES,
        )  # fmt: skip

    def write(self, compared: dict[str, Any], said: str) -> dict[str, Any]:
        """``report.html`` and ``summary.json``, which comes last: it says that all is done."""
        from visfeedback.evaluation import page
        from visfeedback.evaluation.outcomes import read_outcomes
        from visfeedback.report.page import write_page
        from visfeedback.types.files import write_json

        summary = {"command": self.command, **compared, "adapter": str(self.adapter),
                   "seconds": round(sum(self.seconds.values()), 1), "stages": self.seconds}  # fmt: skip
        about = (
            f"Simulated people compared the model's own pictures: {said}. A LoRA learnt from them in "
            f"{self.settings.steps} steps of Diffusion-DPO on `{self.settings.model}`. It is compared with the "
            "untouched model on prompts that neither has seen."
        )
        write_page(
            self.report,
            page.build(read_outcomes(self.pictures), summary, self.pictures, self.settings, "visfeedback quickstart",
                       about, self.learned()),
        )  # fmt: skip
        write_json(self.summary_file, summary)
        return summary

    def learned(self) -> Section:
        """The training curves."""
        from visfeedback.report.blocks import Section
        from visfeedback.report.curves import training_curves
        from visfeedback.training.run import read_metrics

        lead = "Thin: every step. Thick: moving mean. The base model stays as it is; only the LoRA moves."
        return Section("How it learned", (training_curves(read_metrics(self.training / "metrics.jsonl")),), lead)

    def say(self, summary: dict[str, Any]) -> None:
        """The last lines: the result, where it is, what to try next."""
        from visfeedback.evaluation.words import sentence

        self.console.info(sentence(summary))
        self.console.info(f"report: {self.report}")
        adapter, model = shlex.quote(str(self.adapter)), shlex.quote(self.settings.model)
        self.console.info(
            f"next: visfeedback generate --model {model} --adapter {adapter} "
            "--prompts 'a red circle above a blue square' --per-prompt 4 --out pictures"
        )


def evenly(prompts: list[Prompt], count: int, seed: int) -> list[Prompt]:
    """``count`` of ``prompts`` by chance, the categories taking turns; all of them, shuffled, when there are fewer."""
    rng = random.Random(seed)
    groups: dict[str, list[Prompt]] = {}
    for prompt in rng.sample(prompts, len(prompts)):
        groups.setdefault(prompt.category, []).append(prompt)
    turns = [(turn, category) for category in sorted(groups) for turn in range(len(groups[category]))]
    return [groups[category][turn] for turn, category in sorted(turns)][:count]


def _left_out(dropped: dict[str, int]) -> str:
    nouns = {"tie": "ties", "split": "splits"}
    words = ", ".join(f"{n} {reason if n == 1 else nouns.get(reason, reason)}" for reason, n in dropped.items())
    return f" ({words} left out)" if words else ""
