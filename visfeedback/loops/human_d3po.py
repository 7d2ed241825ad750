"""D3PO with people: draw groups of images, let people choose, learn from all pairs of a group, and again.

Paper: Yang et al. 2023, arXiv 2311.13231, whose release has three scripts and files in between; here they are rounds:

    round-N/samples.jsonl, images/, trajectories/    drawn with the policy of the round before
    the store                                        questions, and whatever people answer
    round-N/train/                                   an ordinary run of `train` with d3po on these paths and answers
    adapter/                                         the last of them, once all rounds are done

Each image of a group is evaluated once a step, whatever number of pairs it is in, and the reference's
log-probabilities are kept with the samples: the reference is the model of the start in every round. Resumable: every
stage goes on from its files, and a finished round is a line of rounds.jsonl. A round in which nobody prefers any image
learns nothing, and the next one draws with the same model. May import everything but app and cli.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from visfeedback import prompts as sources
from visfeedback import store
from visfeedback.backbones.load import load
from visfeedback.loops import _human_page
from visfeedback.loops._folders import copy_whole
from visfeedback.loops._human_measures import right, taste
from visfeedback.loops._journal import claim
from visfeedback.loops._path_drawing import Artist, draw_groups
from visfeedback.loops._votes import Asking, ask, judged, person
from visfeedback.methods.d3po import D3PO
from visfeedback.plugins import InputError
from visfeedback.sampling.generate import derive_seed
from visfeedback.training import openers
from visfeedback.training.fit import fit
from visfeedback.training.openers import walk_of
from visfeedback.training.paths import check_groups
from visfeedback.training.rounds import at
from visfeedback.training.run import Run
from visfeedback.training.settings import Engine, Lora, Model, Optim, TrainSettings, settings_for
from visfeedback.training.settings_online import Rollout
from visfeedback.training.setup import make_accelerator
from visfeedback.types.files import append_jsonl, read_jsonl, write_json
from visfeedback.types.protocols import Progress, silent
from visfeedback.types.records import Frozen, Prompt, Sample

ROWS = "rounds.jsonl"


class Loop(Frozen):
    """Which program this is, and its size."""

    name: Literal["human_d3po"] = "human_d3po"
    rounds: int = Field(default=3, ge=1, le=1000)
    """of drawing, asking and learning"""
    store: str = ""
    """where questions and answers are; OUT/store.db when left out"""
    seed: int = Field(default=0, ge=0)
    """images, questions and training follow from it"""


class Settings(Frozen):
    """The preset of a run."""

    loop: Loop = Loop()
    model: Model = Model()
    method: D3PO = D3PO()
    rollout: Rollout = Rollout(prompts=("shapes:train",), per_prompt=7)
    ask: Asking = Asking()
    optim: Optim = Optim(steps=1, batch_size=7)
    lora: Lora = Lora()
    engine: Engine = Engine()


class Round(Frozen):
    """A finished round."""

    round: int
    images: int
    asked: int
    answered: int
    ties: int
    skipped: int = 0
    right: float | None
    """share of the images, drawn before this round's learning, of which all the prompt says holds; where a world's
    verifier can tell"""
    taste: float | None
    """mean of what the simulated person likes besides, for the same images"""
    learned: int
    """images that somebody preferred or rejected; 0 = the round was skipped, and the adapter stays as it was"""
    loss: float | None
    """None when nothing was learned"""
    drift: float
    """from the model of the start; from that of the round, when the program began with an adapter"""
    seconds: float


def run(settings: Settings, out: Path, resume: bool, progress: Progress = silent, command: str = "") -> dict[str, Any]:
    """All rounds; writes round-N/, rounds.jsonl, summary.json and report.html; the last adapter is OUT/adapter, which
    is absent when no round learned anything.

    Raises InputError when people have not answered enough yet: everything is kept, and --resume goes on.
    """
    asked = list({p.id: p for source in settings.rollout.prompts for p in sources.load(source)}.values())
    if not asked:
        raise InputError("nothing to draw; give --rollout.prompts with texts, a file of prompts, or shapes:train")
    if settings.rollout.per_prompt < 2:
        raise InputError("people compare images of a prompt; give --rollout.per-prompt 2 or more")
    program = Program(settings, out, asked, progress)
    program.check()
    claim(out, settings, resume, may_change=("ask.answered", "ask.patience", "ask.poll"))
    rows = program.rounds()
    summary = {**summarise(settings, rows, command, len(asked)), "adapter": program.finish()}
    write_json(out / "summary.json", summary)
    _human_page.write(out, rows, summary)
    return summary


class Program:
    """The model, the people and the folder."""

    def __init__(self, settings: Settings, out: Path, prompts: Sequence[Prompt], progress: Progress) -> None:
        self.settings, self.out, self.prompts, self.progress = settings, out, prompts, progress
        self.address = settings.loop.store or f"sqlite:///{(out / 'store.db').absolute()}"
        self.done: dict[int, Round] = {}

    def check(self) -> None:
        """Raises InputError for what would only show once people have answered."""
        wanted = self.training(0, self.out)
        openers.check(wanted)
        check_groups(wanted)
        if self.settings.ask.judge:
            person(self.settings.ask)

    def rounds(self) -> list[Round]:
        """Those that are done, and all others after them."""
        self.done = {row.round: row for row in read_jsonl(self.out / ROWS, Round)} if (self.out / ROWS).exists() else {}
        for number in range(self.settings.loop.rounds):
            if number not in self.done:
                self.done[number] = self.round(number)
                append_jsonl(self.out / ROWS, [self.done[number]])
        return [self.done[number] for number in sorted(self.done)]

    def finish(self) -> str:
        """OUT/adapter, or what the program began with when no round learned."""
        last, target = self.adapter(self.settings.loop.rounds), self.out / "adapter"
        if last == self.settings.model.adapter:
            return last
        copy_whole(Path(last), target)
        return str(target)

    def round(self, number: int) -> Round:
        """Draw, ask, learn."""
        began, folder = time.perf_counter(), self.out / f"round-{number}"
        asking = self.settings.ask
        samples = self.draw(number, folder)
        with closing(store.open(self.address)) as opened:
            pairs = len(samples) * (self.settings.rollout.per_prompt - 1) // 2
            with self.progress("waiting for answers", pairs) as advance:
                counts = ask(opened, samples, folder, asking, self.settings.loop.seed + number, advance)
            preferred = judged(opened, samples, asking.criterion)
        learned = self.train(number, folder) if preferred else self._skipped(number, counts)
        images = [Image.open(folder / sample.path).convert("RGB") for sample in samples]
        return Round(
            round=number, images=len(samples), **counts, right=right(self.settings.model.id, samples, images),
            taste=taste(asking.judge, asking.tastes, images), learned=len(preferred), loss=learned["loss"],
            drift=learned["drift"], seconds=time.perf_counter() - began,
        )  # fmt: skip

    def _skipped(self, number: int, counts: dict[str, int]) -> dict[str, Any]:
        """Say that there is nothing to learn; the loss and drift of such a round."""
        warnings.warn(
            f"round {number}: nobody preferred any image ({counts['ties']} ties, {counts['skipped']} skipped of "
            f"{counts['asked']} pairs); nothing is learned, and the adapter stays as it was",
            stacklevel=2,
        )
        before = self.done.get(number - 1)
        return {"loss": None, "drift": before.drift if before and not self.settings.model.adapter else 0.0}

    def adapter(self, number: int) -> str:
        """What round ``number`` begins with: what the newest round before it that was not skipped learned."""
        newest = max((row.round for row in self.done.values() if row.round < number and row.learned), default=None)
        return self.settings.model.adapter if newest is None else str(self.out / f"round-{newest}/train/adapter")

    def draw(self, number: int, folder: Path) -> list[Sample]:
        """Images of the policy as it is, with their paths."""
        rollout, model, seed = self.settings.rollout, self.settings.model, self.settings.loop.seed
        backbone = load(model.id, adapter=model.adapter, dtype=model.dtype, device=self.settings.engine.device)
        if model.adapter:
            backbone.freeze_reference()  # the model of the start
        if self.adapter(number) != model.adapter:
            self._put(backbone, self.adapter(number))
        chosen = [at(self.prompts, seed, number * rollout.prompts_per_round + i)
                  for i in range(min(rollout.prompts_per_round, len(self.prompts)))]  # fmt: skip
        chosen = list({prompt.id: prompt for prompt in chosen}.values())
        autocast = make_accelerator(self.settings.engine, Run(folder / "train")).autocast
        artist = Artist(backbone, walk_of(rollout, backbone), self.adapter(number), rollout.micro_batch,
                        rollout.shared_noise, autocast)  # fmt: skip
        with self.progress(f"round {number}: drawing", len(chosen) * rollout.per_prompt) as advance:
            return draw_groups(artist, chosen, rollout.per_prompt, derive_seed(seed, "round", number), folder, advance)

    def _put(self, backbone: Any, adapter: str) -> None:
        """The policy's LoRA, whatever the reference is."""
        if not self.settings.model.adapter:
            backbone.load_adapter(adapter)
            return
        from visfeedback.training.policy import put_weights

        other = load(self.settings.model.id, adapter=adapter, device="cpu")
        put_weights(backbone, dict(other.named_parameters()))

    def train(self, number: int, folder: Path) -> dict[str, Any]:
        """One run of `train` on this round's paths and answers; a started one goes on."""
        return fit(self.training(number, folder), folder / "train", resume=True, progress=self.progress)

    def training(self, number: int, folder: Path) -> TrainSettings:
        """What `visfeedback train` would be told."""
        settings, adapter = self.settings, self.adapter(number)
        engine = settings.engine.model_copy(update={"seed": derive_seed(settings.loop.seed, "train", number)})
        reference = "start" if settings.model.adapter or not adapter else "bare"
        kind = settings_for("d3po")
        return kind(
            model=settings.model.model_copy(update={"adapter": adapter, "reference": reference}),
            method=kind.model_fields["method"].annotation(**settings.method.model_dump()),  # type: ignore[misc]
            data=kind.model_fields["data"].annotation(  # type: ignore[misc]
                paths=str(folder), store=self.address, criterion=settings.ask.criterion
            ),
            rollout=settings.rollout.model_copy(update={"source": "stored", "prompts": ()}),
            optim=settings.optim, lora=settings.lora, engine=engine,
            eval=kind.model_fields["eval"].annotation(count=0),  # type: ignore[misc]
        )  # fmt: skip


def summarise(settings: Settings, rows: Sequence[Round], command: str, prompts: int) -> dict[str, Any]:
    """What summary.json says; the last round's own learning shows only when more is drawn."""
    return {
        "command": command, "seed": settings.loop.seed, "model": settings.model.id, "rounds": len(rows),
        "prompts": prompts, "images": sum(row.images for row in rows), "answers": sum(row.answered for row in rows),
        "who": settings.ask.judge or "people", "seconds": round(sum(row.seconds for row in rows), 1),
        "drift": rows[-1].drift, "per_round": [row.model_dump() for row in rows],
    }  # fmt: skip
