"""D3PO with people: draw groups of images, let people choose, learn from all pairs of a group, and again.

Paper: Yang et al. 2023, arXiv 2311.13231, whose release has three scripts and files in between; here they are rounds:

    round-N/samples.jsonl, images/, trajectories/    drawn with the policy of the round before
    the store                                        questions, and whatever people answer
    round-N/train/                                   an ordinary run of `train` with d3po on these paths and answers

Each image of a group is evaluated once a step, whatever number of pairs it is in, and the reference's
log-probabilities are kept with the samples: the reference is the model of the start in every round. Resumable: every
stage goes on from its files, and a finished round is a line of rounds.jsonl. May import everything but app and cli.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from visfeedback import prompts as sources
from visfeedback import store
from visfeedback.backbones.load import load
from visfeedback.loops import _human_page
from visfeedback.loops._journal import claim
from visfeedback.loops._path_drawing import Artist, draw_groups
from visfeedback.loops._votes import Asking, ask
from visfeedback.methods.d3po import D3PO
from visfeedback.plugins import InputError, split_reference, world
from visfeedback.sampling.generate import derive_seed
from visfeedback.training.fit import fit
from visfeedback.training.openers import walk_of
from visfeedback.training.rounds import at
from visfeedback.training.settings import Engine, Lora, Model, Optim, settings_for
from visfeedback.training.settings_online import Rollout
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
    """images that somebody preferred or rejected"""
    loss: float
    drift: float
    """from the model of the start; from that of the round, when the program began with an adapter"""
    seconds: float


def run(settings: Settings, out: Path, resume: bool, progress: Progress = silent, command: str = "") -> dict[str, Any]:
    """All rounds; writes round-N/, rounds.jsonl, summary.json and report.html; the last adapter is OUT/adapter.

    Raises InputError when people have not answered enough yet: everything is kept, and --resume goes on.
    """
    asked = list({p.id: p for source in settings.rollout.prompts for p in sources.load(source)}.values())
    if settings.rollout.per_prompt < 2:
        raise InputError("people compare images of a prompt; give --rollout.per-prompt 2 or more")
    claim(out, settings, resume, may_change=("ask.answered", "ask.patience", "ask.poll"))
    program = Program(settings, out, asked, progress)
    done = {row.round: row for row in read_jsonl(out / ROWS, Round)} if (out / ROWS).exists() else {}
    for number in range(settings.loop.rounds):
        if number not in done:
            done[number] = program.round(number)
            append_jsonl(out / ROWS, [done[number]])
    rows = [done[number] for number in sorted(done)]
    summary = summarise(settings, rows, out, command, len(asked))
    write_json(out / "summary.json", summary)
    _human_page.write(out, rows, summary)
    return summary


class Program:
    """The model, the people and the folder."""

    def __init__(self, settings: Settings, out: Path, prompts: Sequence[Prompt], progress: Progress) -> None:
        self.settings, self.out, self.prompts, self.progress = settings, out, prompts, progress
        self.address = settings.loop.store or f"sqlite:///{(out / 'store.db').absolute()}"

    def round(self, number: int) -> Round:
        """Draw, ask, learn."""
        began, folder = time.perf_counter(), self.out / f"round-{number}"
        asking = self.settings.ask
        samples = self.draw(number, folder)
        with closing(store.open(self.address)) as opened:
            pairs = len(samples) * (self.settings.rollout.per_prompt - 1) // 2
            with self.progress("waiting for answers", pairs) as advance:
                counts = ask(opened, samples, folder, asking, self.settings.loop.seed + number, advance)
        learned = self.train(number, folder)
        images = [Image.open(folder / sample.path).convert("RGB") for sample in samples]
        return Round(
            round=number, images=len(samples), **counts, right=self._right(samples, images),
            taste=self._taste(images), learned=learned["images_seen"], loss=learned["loss"], drift=learned["drift"],
            seconds=time.perf_counter() - began,
        )  # fmt: skip

    def adapter(self, number: int) -> str:
        """What round ``number`` begins with."""
        return str(self.out / f"round-{number - 1}/train/adapter") if number else self.settings.model.adapter

    def draw(self, number: int, folder: Path) -> list[Sample]:
        """Images of the policy as it is, with their paths."""
        rollout, model, seed = self.settings.rollout, self.settings.model, self.settings.loop.seed
        backbone = load(model.id, adapter=model.adapter, dtype=model.dtype, device=self.settings.engine.device)
        if model.adapter:
            backbone.freeze_reference()  # the model of the start
        if number:
            self._put(backbone, self.adapter(number))
        chosen = [at(self.prompts, seed, number * rollout.prompts_per_round + i)
                  for i in range(min(rollout.prompts_per_round, len(self.prompts)))]  # fmt: skip
        chosen = list({prompt.id: prompt for prompt in chosen}.values())
        artist = Artist(backbone, walk_of(rollout, backbone), self.adapter(number), rollout.micro_batch,
                        rollout.shared_noise)  # fmt: skip
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
        settings = self.settings
        engine = settings.engine.model_copy(update={"seed": derive_seed(settings.loop.seed, "train", number)})
        reference = "start" if settings.model.adapter or not number else "bare"
        kind = settings_for("d3po")
        wanted = kind(
            model=settings.model.model_copy(update={"adapter": self.adapter(number), "reference": reference}),
            method=kind.model_fields["method"].annotation(**settings.method.model_dump()),  # type: ignore[misc]
            data=kind.model_fields["data"].annotation(  # type: ignore[misc]
                paths=str(folder), store=self.address, criterion=settings.ask.criterion
            ),
            rollout=settings.rollout.model_copy(update={"source": "stored", "prompts": ()}),
            optim=settings.optim, lora=settings.lora, engine=engine,
            eval=kind.model_fields["eval"].annotation(count=0),  # type: ignore[misc]
        )  # fmt: skip
        return fit(wanted, folder / "train", resume=True, progress=self.progress)

    def _right(self, samples: Sequence[Sample], images: Sequence[Image.Image]) -> float | None:
        place = split_reference(self.settings.model.id)
        if place is None or not hasattr(world(place[0]), "verifier"):
            return None
        verifier = world(place[0]).verifier()
        return sum(verifier.verify(s.prompt, i).right for s, i in zip(samples, images, strict=True)) / len(images)

    def _taste(self, images: Sequence[Image.Image]) -> float | None:
        """Of the simulated person; None without one, or without tastes."""
        tastes, (kind, _, place) = self.settings.ask.tastes, self.settings.ask.judge.partition(":")
        if not tastes or kind != "simulated":
            return None
        people = import_module(f"{world(place).__name__}.simulated")
        return sum(people.taste_of(image, tastes) for image in images) / len(images)


def summarise(settings: Settings, rows: Sequence[Round], out: Path, command: str, prompts: int) -> dict[str, Any]:
    """What summary.json says; the last round's own learning shows only when more is drawn."""
    return {
        "command": command, "seed": settings.loop.seed, "model": settings.model.id, "rounds": len(rows),
        "prompts": prompts, "images": sum(row.images for row in rows), "answers": sum(row.answered for row in rows),
        "who": settings.ask.judge or "people", "seconds": round(sum(row.seconds for row in rows), 1),
        "drift": rows[-1].drift, "per_round": [row.model_dump() for row in rows],
        "adapter": str(out / f"round-{rows[-1].round}/train/adapter"),
    }  # fmt: skip
