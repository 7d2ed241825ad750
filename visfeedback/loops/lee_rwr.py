"""Lee et al. 2023, "Aligning Text-to-Image Models using Human Feedback" (arXiv 2302.12192), from front to back.

    draw -> label good or bad -> fit a reward to the labels -> score -> reward-weighted fine-tuning -> evaluate

- The reward is an MLP on CLIP features with the auxiliary prompt classification (`[reward] auxiliary = 0`: without).
- Training: mean of r(image, prompt) times the denoising error, plus beta times that of real images. In the shapes
  world these are renders of the training prompts, in the place of the paper's 625,000 pre-training images;
  `[method] beta = 0` or `[data] real = ""` leaves them out.
- Labels come from a world's verifier, from a simulated person, or from people, whose likes and ratings are in a store
  (`[label] judge = "store"`: then nothing is drawn, the store's images are learned from).

Everything is in the folder: drawn/, store.db (the answers), labels.jsonl (those that are learned from: what people add
later is not), reward/, scored.jsonl, real/, run/ (with adapter/), evaluation/, stages.jsonl, summary.json, report.html.
A stage that is finished is not done again.
May import everything but app and cli.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from visfeedback.evaluation import page
from visfeedback.evaluation.outcomes import read_outcomes
from visfeedback.loops import _likes, _tuning
from visfeedback.loops._journal import claim
from visfeedback.loops._likes import Label, LabelChoice
from visfeedback.loops._renders import write_renders
from visfeedback.loops._stages import Stages
from visfeedback.loops._tuning import Engine, Evaluation, Lora, Model, Optim, Pictures
from visfeedback.methods.rwr import RWR
from visfeedback.plugins import InputError
from visfeedback.report.page import write_page
from visfeedback.rewards.fit import LabelSettings, fit_labels
from visfeedback.sampling.generate import GenerateSettings, derive_seed
from visfeedback.shapes.grammar import change_one_word
from visfeedback.training.scorer import Scorer
from visfeedback.training.settings_online import RewardChoice
from visfeedback.types.files import read_jsonl, write_json
from visfeedback.types.protocols import Progress, silent
from visfeedback.types.records import Frozen, Sample

LABELS, SCORES, SCORED = "labels.jsonl", "scores.jsonl", "scored.jsonl"


class Loop(Frozen):
    """Which program this is, and its size."""

    name: Literal["lee_rwr"] = "lee_rwr"
    per_prompt: int = Field(default=6, ge=1)
    """images of each training prompt that are drawn, labelled and learned from"""
    renders: int = Field(default=2, ge=1)
    """with data.real = renders: real images of each training prompt"""
    seed: int = Field(default=0, ge=0, lt=2**53)
    """images, slips of simulated people and renders follow from it; the other sections have seeds of their own"""


class Data(Pictures):
    """What is drawn, and the images to stay close to."""

    real: str = "renders"
    """`renders` = pictures that the prompts' own world draws of them; a folder or file of images with prompts; empty
    for none"""


class Settings(Frozen):
    """The preset of a run."""

    loop: Loop = Loop()
    model: Model = Model()
    data: Data = Data()
    generate: GenerateSettings = GenerateSettings()
    label: LabelChoice = LabelChoice()
    reward: LabelSettings = LabelSettings()
    method: RWR = RWR(weighting="reward", beta=2.0)
    optim: Optim = Optim()
    lora: Lora = Lora()
    engine: Engine = Engine()
    evaluation: Evaluation = Evaluation()


def run(settings: Settings, out: Path, resume: bool, progress: Progress = silent, command: str = "") -> dict[str, Any]:
    """All stages; returns what summary.json says. Raises InputError for wrong settings before anything is drawn."""
    program = Program(settings, out, progress)
    program.check()
    claim(out, settings, resume)
    stages = program.stages
    found = {
        "drawn": stages.once("draw", program.draw),
        "labels": stages.once("label", program.label),
        "reward": stages.once("fit", program.fit),
        "scored": stages.once("score", program.score),
        "real": stages.once("real", program.real),
        "training": stages.once("train", program.train),
    }
    compared = stages.once("evaluate", program.evaluate)
    summary = {
        "command": command, **found, **compared, "loop": "lee_rwr", "auxiliary": settings.reward.auxiliary,
        "beta": settings.method.beta if found["real"]["source"] else 0.0,
        "seconds": round(sum(stages.seconds.values()), 1), "seconds_of": stages.seconds,
    }  # fmt: skip
    write_json(out / "summary.json", summary)
    about = (
        f"{found['labels']['labels']} labels ({found['labels']['good']:.0%} good) of {found['labels']['judge']}, a "
        f"reward fitted to them, and reward-weighted fine-tuning of `{settings.model.id}`."
    )
    outcomes = read_outcomes(out / "evaluation")
    write_page(
        out / "report.html", page.build(outcomes, summary, out / "evaluation", settings, "visfeedback loop", about)
    )
    return summary


class Program:
    """The stages, each a function of the settings and of what the ones before left in the folder."""

    def __init__(self, settings: Settings, out: Path, progress: Progress) -> None:
        self.settings, self.out, self.progress = settings, out, progress
        self.stages = Stages(out)
        self.people = settings.label.judge == "store"

    def check(self) -> None:
        """Raises InputError for what would only show after hours."""
        settings = self.settings
        _tuning.check(settings.data.real if settings.method.beta else "", settings.evaluation)
        if self.people and not settings.label.store:
            raise InputError("label.judge = store needs the store: --label.store sqlite:///prefs.db")
        if settings.label.store and not self.people:
            raise InputError("label.store is where people's answers are; with it give --label.judge store")
        if self.people:
            _likes.read_labels(settings.label.store, settings.label)
            return
        _, likes = _likes.invite(settings.label, settings.loop.seed)
        _likes.check_readable(_tuning.prompts_of(settings.data.prompts), likes)

    @property
    def url(self) -> str:
        """The store of the answers."""
        return self.settings.label.store if self.people else f"sqlite:///{(self.out / 'store.db').absolute()}"

    def draw(self) -> dict[str, Any]:
        settings = self.settings
        if self.people:
            return {"images": 0, "prompts": 0}
        prompts = _tuning.prompts_of(settings.data.prompts)
        samples = _tuning.draw(
            settings.model, settings.engine, prompts, settings.loop.per_prompt, settings.loop.seed, self.out / "drawn",
            settings.generate, self.progress,
        )  # fmt: skip
        return {"images": len(samples), "prompts": len(prompts)}

    def label(self) -> dict[str, Any]:
        settings = self.settings
        name = settings.label.judge
        if not self.people:
            judge = _likes.invite(settings.label, settings.loop.seed)
            name, samples = judge[0], _tuning.drawn(self.out / "drawn")
            _likes.label(self.url, samples, self.out / "drawn", judge, settings.label.criterion, self.progress)
        labels, dropped = _likes.read_labels(self.url, settings.label)
        _likes.write_labels(self.out / LABELS, labels)
        good = sum(row.good > 0.5 for row in labels) / len(labels)
        return {"judge": name, "labels": len(labels), "good": good, "left_out": dropped}

    def labels(self) -> list[Label]:
        """What the stage `label` found; the store itself may have more by now. Folders of before kept no list."""
        if not (self.out / LABELS).is_file():
            _likes.write_labels(self.out / LABELS, _likes.read_labels(self.url, self.settings.label)[0])
        return list(read_jsonl(self.out / LABELS, Label))

    def fit(self) -> dict[str, Any]:
        labels = self.labels()
        summary = fit_labels(
            [label.labelled(self.out) for label in labels], self.settings.reward, self.out / "reward",
            progress=self.progress, distractors=self._distractors([label.sample for label in labels]),
        )  # fmt: skip
        kept = ("labels", "prompts", "best_epoch", "epochs", "error", "accuracy", "auc", "base_auc", "tells_prompt",
                "base_tells_prompt")  # fmt: skip
        return {name: summary[name] for name in kept}

    def _distractors(self, samples: Sequence[Sample]) -> Any:
        """For prompts of the shapes world: one word of meaning changed; else words seen in the same place."""
        if self.people and not all(sample.model.startswith("shapes:") for sample in samples):
            return None
        if not self.people and _tuning.world_of(_tuning.prompts_of(self.settings.data.prompts)) != "shapes":
            return None
        count = self.settings.reward.distractors

        def changed(prompt: str) -> list[str]:
            rng = np.random.default_rng(derive_seed(self.settings.reward.seed, f"changed {prompt}", 0))
            return list(dict.fromkeys(change_one_word(prompt, rng) for _ in range(4 * count)))

        return changed

    def score(self) -> dict[str, Any]:
        """The fitted reward's scores of the images that are learned from."""
        samples = [label.sample for label in self.labels()]
        scorer = Scorer(RewardChoice(name=f"fit@{self.out / 'reward'}"), self.settings.reward.device)
        scores = _tuning.scores_of(samples, self.out, scorer, self.out / SCORES, self.progress)
        _tuning.write_scored(self.out / SCORED, self.out, samples, [{"score": score} for score in scores])
        return {"images": len(scores), "mean": float(np.mean(scores)), "std": float(np.std(scores))}

    def real(self) -> dict[str, Any]:
        """Renders, if these are the real images; else nothing is to be done."""
        settings = self.settings
        source = settings.data.real if settings.method.beta else ""
        if source == "renders":
            prompts = _tuning.prompts_of(settings.data.prompts)
            write_renders(prompts, settings.loop.renders, settings.loop.seed, self.out / "real")
        return {"source": source}

    def train(self) -> dict[str, Any]:
        settings = self.settings
        real = str(self.out / "real") if settings.data.real == "renders" else settings.data.real
        data = {"images": str(self.out / SCORED), "real": real if settings.method.beta else "",
                "times": settings.data.times}  # fmt: skip
        method = {"name": "rwr", **settings.method.model_dump()}
        return _tuning.train(
            method,
            settings.model,
            settings.optim,
            settings.lora,
            settings.engine,
            data,
            self.out / "run",
            self.progress,
        )

    def evaluate(self) -> dict[str, Any]:
        settings = self.settings
        return _tuning.evaluate(
            settings.evaluation, settings.model, settings.engine, self.out / "run" / "adapter", self.out / "evaluation",
            settings.generate, self.progress, (f"fit@{self.out / 'reward'}",),
        )  # fmt: skip
