"""DreamSync: draw several images of each prompt, let two judges filter them, learn the best that pass, and again.

Sun et al. 2023, "DreamSync: Aligning Text-to-Image Generation with Image Understanding Feedback" (arXiv 2311.17946).
One judge says how faithful an image is to its prompt (in the paper the share of right answers of a VQA model), the
other how beautiful it is; an image is kept when both scores reach their thresholds, and of those of one prompt the one
with the highest sum is learned. Each round draws with the model that the one before left.

With `accumulate` a round learns from what all rounds kept, so that the model does not feed on its newest images alone
(Gerstgrasser et al. 2024, arXiv 2404.01413, on model collapse); the paper learns from the newest.

In the folder: round-N/{drawn,faithful.jsonl,beautiful.jsonl,scored.jsonl,run,evaluation}, stages.jsonl, summary.json,
report.html; the last round's adapter is in round-N/run/adapter. A stage that is finished is not done again.
May import everything but app and cli.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from visfeedback.backbones.load import pick_device
from visfeedback.evaluation import page
from visfeedback.evaluation.compare import diversity
from visfeedback.evaluation.outcomes import read_outcomes
from visfeedback.loops import _tuning
from visfeedback.loops._filter import Filter, Judged, passing
from visfeedback.loops._journal import claim
from visfeedback.loops._renders import write_renders
from visfeedback.loops._rounds_table import rounds_section
from visfeedback.loops._stages import Stages
from visfeedback.loops._tuning import Engine, Evaluation, Lora, Model, Optim, Pictures
from visfeedback.methods.raft import RAFT
from visfeedback.plugins import InputError
from visfeedback.report.page import write_page
from visfeedback.sampling.generate import GenerateSettings, derive_seed
from visfeedback.types.files import write_atomic, write_json
from visfeedback.types.protocols import Progress, silent
from visfeedback.types.records import Frozen, Prompt

SCORED, LEARNED = "scored.jsonl", "learned.jsonl"
SCORES = ("faithful.jsonl", "beautiful.jsonl")


class Loop(Frozen):
    """Which program this is, and its size."""

    name: Literal["dreamsync"] = "dreamsync"
    rounds: int = Field(default=3, ge=1, le=64)
    """of drawing, filtering and learning"""
    per_prompt: int = Field(default=8, ge=2)
    """images of each prompt in a round"""
    accumulate: bool = True
    """learn from what all rounds kept; off = from the newest round alone"""
    seed: int = Field(default=0, ge=0, lt=2**53)
    """all images that are learned from follow from it"""


class Settings(Frozen):
    """The preset of a run."""

    loop: Loop = Loop()
    model: Model = Model()
    data: Pictures = Pictures()
    generate: GenerateSettings = GenerateSettings()
    filter: Filter = Filter()
    optim: Optim = Optim()
    lora: Lora = Lora()
    engine: Engine = Engine()
    evaluation: Evaluation = Evaluation()


def run(settings: Settings, out: Path, resume: bool, progress: Progress = silent, command: str = "") -> dict[str, Any]:
    """All rounds; returns what summary.json says. Raises InputError for wrong settings before anything is drawn, and
    when a round keeps no image."""
    prompts = _tuning.prompts_of(settings.data.prompts)
    _tuning.check(settings.data.real, settings.evaluation)
    settings.filter.load(prompts)  # whether they can judge these
    claim(out, settings, resume)
    program = Program(settings, out, progress, prompts)
    rounds = [program.round(number) for number in range(1, settings.loop.rounds + 1)]
    compared = rounds[-1]["evaluation"]
    summary = {
        "command": command, **compared, "loop": "dreamsync",
        "rounds": [{**row, "evaluation": _short(row["evaluation"])} for row in rounds],
        "seconds": round(sum(program.stages.seconds.values()), 1), "seconds_of": program.stages.seconds,
    }  # fmt: skip
    write_json(out / "summary.json", summary)
    folder = out / f"round-{settings.loop.rounds}" / "evaluation"
    about = (
        f"{settings.loop.rounds} rounds on {len(prompts)} prompts: {settings.loop.per_prompt} images of each, kept "
        f"from {settings.filter.faithful} {settings.filter.faithful_from:g} and {settings.filter.beautiful} "
        f"{settings.filter.beautiful_from:g} on."
    )
    made = page.build(
        read_outcomes(folder), summary, folder, settings, "visfeedback loop", about, rounds_section(summary["rounds"])
    )
    write_page(out / "report.html", made)
    return summary


def _short(compared: dict[str, Any]) -> dict[str, Any]:
    """What the table of rounds shows of an evaluation."""
    kept = ("delta", "delta_ci95", "delta_of", "win_rate", "win_rate_ci95", "drift", "diversity")
    return {**{name: compared[name] for name in kept}, "accuracy": compared["tuned"]["accuracy"],
            "accuracy_ci95": compared["tuned"]["accuracy_ci95"]}  # fmt: skip


class Program:
    """Rounds, each a function of the settings and of what the ones before left in the folder."""

    def __init__(self, settings: Settings, out: Path, progress: Progress, prompts: Sequence[Prompt]) -> None:
        self.settings, self.out, self.progress, self.prompts = settings, out, progress, prompts
        self.stages = Stages(out)

    def folder(self, number: int) -> Path:
        return self.out / f"round-{number}"

    def adapter(self, number: int) -> str:
        """What round ``number`` learned; none before the first."""
        return str(self.folder(number) / "run" / "adapter") if number else ""

    def round(self, number: int) -> dict[str, Any]:
        """Draw, judge, keep, learn, evaluate."""
        once, name = self.stages.once, f"round-{number}"
        return {
            "round": number,
            **once(f"{name}/draw", lambda: self.draw(number)),
            **once(f"{name}/judge", lambda: self.judge(number)),
            "training": once(f"{name}/train", lambda: self.train(number)),
            "evaluation": once(f"{name}/evaluate", lambda: self.evaluate(number)),
        }

    def draw(self, number: int) -> dict[str, Any]:
        settings, folder = self.settings, self.folder(number) / "drawn"
        samples = _tuning.draw(
            settings.model, settings.engine, self.prompts, settings.loop.per_prompt,
            derive_seed(settings.loop.seed, "round", number), folder, settings.generate, self.progress,
            self.adapter(number - 1),
        )  # fmt: skip
        return {"images": len(samples), "diversity": diversity(samples, folder)}

    def judge(self, number: int) -> dict[str, Any]:
        """Both scores of every image, and the score that RAFT learns by: 0 when it does not pass."""
        folder, settings = self.folder(number), self.settings
        root = folder / "drawn"
        # On the device only while they judge: the paper's are many times as large as the model that is trained.
        judges = settings.filter.load(self.prompts, str(pick_device(settings.engine.device)))
        samples = _tuning.drawn(root)
        scores = [_tuning.scores_of(samples, root, judge, folder / file, self.progress)
                  for judge, file in zip(judges, SCORES, strict=True)]  # fmt: skip
        judged = [Judged(s.prompt_id, *pair) for s, pair in zip(samples, zip(*scores, strict=True), strict=True)]
        learned = passing(judged, settings.filter)
        rows = [
            {"score": score, "faithful": one.faithful, "beautiful": one.beautiful, "group": f"{number} {one.prompt_id}"}
            for one, score in zip(judged, learned, strict=True)
        ]
        _tuning.write_scored(folder / SCORED, root, samples, rows)
        kept = {one.prompt_id for one, score in zip(judged, learned, strict=True) if score}
        if not kept:
            raise InputError(settings.filter.nothing(number, judged))
        return {
            "passing": sum(score > 0 for score in learned) / len(learned), "prompts_kept": len(kept),
            "faithful": sum(scores[0]) / len(judged), "beautiful": sum(scores[1]) / len(judged),
        }  # fmt: skip

    def train(self, number: int) -> dict[str, Any]:
        settings, folder = self.settings, self.folder(number)
        first = 1 if settings.loop.accumulate else number
        rows = [row for earlier in range(first, number + 1) for row in self.kept(earlier, folder)]
        write_atomic(folder / LEARNED, "".join(json.dumps(row) + "\n" for row in rows))
        real = settings.data.real
        if real == "renders":
            real = str(write_renders(self.prompts, 1, settings.loop.seed, self.out / "real"))
        data = {"images": str(folder / LEARNED), "real": real, "times": settings.data.times}
        method = {"name": "raft", **RAFT(floor=1.0, distinct=False, beta=1.0).model_dump()}
        return _tuning.train(
            method, settings.model, settings.optim, settings.lora, settings.engine, data, folder / "run",
            self.progress, self.adapter(number - 1),
        )  # fmt: skip

    def kept(self, number: int, folder: Path) -> list[dict[str, Any]]:
        """Rows of the images of round ``number`` that passed, with paths as seen from ``folder``."""
        home = self.folder(number)
        rows = map(json.loads, (home / SCORED).read_text(encoding="utf-8").splitlines())
        return [{**row, "image": os.path.relpath(home / row["image"], folder)} for row in rows if row["score"] > 0]

    def evaluate(self, number: int) -> dict[str, Any]:
        settings, base = self.settings, self.folder(number - 1) / "evaluation" if number > 1 else None
        witnesses = (settings.filter.faithful, settings.filter.beautiful)
        return _tuning.evaluate(
            settings.evaluation, settings.model, settings.engine, Path(self.adapter(number)),
            self.folder(number) / "evaluation", settings.generate, self.progress, witnesses, base,
        )  # fmt: skip
