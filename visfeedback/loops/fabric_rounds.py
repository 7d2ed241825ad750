"""FABRIC in rounds: draw, let a user like and dislike, draw again along what was liked; beside three baselines.

Paper: von Rütte et al. 2023, arXiv 2307.10159, section 5: feedback of a preference model, and of a hidden target, over
rounds. Each round likes the images the user prefers most and dislikes those preferred least; all accumulate.
Arms, with the same seeds in each round:

- ``fabric``: references of all rounds before act through self-attention;
- ``none``: no feedback; ``best_of_n``: its images and as many more as the reference passes would have paid for, of
  which the user picks as many as a round shows;
- ``prompt_dropout``: words of the prompt are left out at random, another way to diverse images.

The references' keys and values are kept over rounds, so a round costs passes of new references only. Resumable: a
finished round of a prompt is a line of rounds.jsonl. May import everything but app and cli.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from visfeedback import prompts as sources
from visfeedback import rewards
from visfeedback.backbones.load import Dtype, load_pipeline
from visfeedback.loops import _rounds_page, _rounds_summary
from visfeedback.loops._journal import Journal, Round, claim
from visfeedback.loops._rounds_measures import Measured, measure, opened
from visfeedback.loops._rounds_targets import hidden
from visfeedback.loops._users import Features, UserSettings, invite
from visfeedback.plugins import split_reference, world
from visfeedback.sampling.fabric.session import FabricSession
from visfeedback.sampling.fabric.settings import FabricSettings
from visfeedback.sampling.generate import derive_seed
from visfeedback.sampling.render import GenerateSettings, render, resolve
from visfeedback.types.files import write_json
from visfeedback.types.protocols import Progress, silent
from visfeedback.types.records import Frozen, Prompt

Arm = Literal["fabric", "none", "prompt_dropout"]


class Loop(Frozen):
    """Which program this is, and its size."""

    name: Literal["fabric_rounds"] = "fabric_rounds"
    rounds: int = Field(default=4, ge=1, le=64)
    """the first of them before any feedback"""
    images: int = Field(default=4, ge=2)
    """of each prompt in each round"""
    likes: int = Field(default=1, ge=0)
    """images liked in each round"""
    dislikes: int = Field(default=1, ge=0)
    """images disliked in each round"""
    arms: tuple[Arm, ...] = Field(default=("fabric", "none", "prompt_dropout"), min_length=1)
    """best_of_n comes with none"""
    dropout: float = Field(default=0.3, ge=0, le=1)
    """share of words left out in the arm prompt_dropout"""
    similarity: str = "shapes_clip"
    """the reward whose image features say how alike images are"""
    seed: int = Field(default=0, ge=0)
    """all images and intervals follow from it"""

    @model_validator(mode="after")
    def _enough_images(self) -> Loop:
        if self.likes + self.dislikes > self.images:
            raise ValueError(f"likes {self.likes} + dislikes {self.dislikes} are more than the {self.images} images")
        return self


class Model(Frozen):
    """Who draws."""

    id: str = "shapes:sd"
    """hub id, diffusers folder, single-file checkpoint, or shapes:sd"""
    adapter: str = ""
    """LoRA to draw with"""
    dtype: Dtype = "fp32"
    """precision of the networks"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


class Data(Frozen):
    """What is drawn."""

    prompts: tuple[str, ...] = Field(default=("shapes:heldout:16",), min_length=1)
    """texts, files, or shapes:heldout:16"""


class Settings(Frozen):
    """The preset of a run."""

    loop: Loop = Loop()
    model: Model = Model()
    data: Data = Data()
    user: UserSettings = UserSettings()
    fabric: FabricSettings = FabricSettings()
    generate: GenerateSettings = GenerateSettings()


def run(settings: Settings, out: Path, resume: bool, progress: Progress = silent, command: str = "") -> dict[str, Any]:
    """All rounds of all prompts; writes rounds.jsonl, images/, summary.json and report.html; returns the summary."""
    asked = list({prompt.id: prompt for source in settings.data.prompts for prompt in sources.load(source)}.values())
    claim(out, settings, resume)
    program = Program(settings, out)
    program.think_of(asked)
    arms = sorted(settings.loop.arms, key=("fabric", "none", "prompt_dropout").index)  # others look at fabric's likes
    with progress("rounds", len(asked) * len(arms) * settings.loop.rounds) as advance:
        for prompt in asked:
            for arm in arms:
                program.play(prompt, arm, advance)
    summary = {"command": command, **_rounds_summary.summarise(program.journal.rows, settings, len(asked))}
    write_json(out / "summary.json", summary)
    _rounds_page.write(out, program.journal.rows, summary, settings)
    return summary


class Program:
    """The model, the user and the folder."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out, self.journal = settings, out, Journal(out)
        self.pipe = load_pipeline(settings.model.id, adapter=settings.model.adapter, dtype=settings.model.dtype,
                                  device=settings.model.device).pipe  # fmt: skip
        device = str(self.pipe.device)
        self.drawing = resolve(settings.generate, self.pipe)
        self.features = Features(rewards.load(settings.loop.similarity, device))
        self.wish = invite(settings.user, lambda prompt: self.targets[prompt.id], device)
        self.targets: dict[str, Image.Image] = {}
        """hidden images by prompt id; empty for users without one"""

    def think_of(self, asked: Sequence[Prompt]) -> None:
        """The hidden images, before work begins: one that is missing is an error at once."""
        if self.settings.user.kind == "target":
            user = hidden(self.settings.user.targets, self.settings.loop.seed,
                          lambda prompt, seed: self.draw(prompt, [prompt.text], [seed])[0])  # fmt: skip
            for prompt in asked:
                file = self.out / _rounds_page.TARGET.format(prompt.id)
                self.targets[prompt.id] = opened(file) if file.is_file() else user(prompt)
                self._save(self.targets[prompt.id], _rounds_page.TARGET.format(prompt.id))

    def draw(self, prompt: Prompt, texts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return render(self.pipe, texts, seeds, settings=self.drawing, negatives=[prompt.negative] * len(texts))

    def play(self, prompt: Prompt, arm: Arm, advance: Callable[[int], None]) -> None:
        """All rounds of one arm on one prompt; finished ones are read."""
        session = FabricSession(self.pipe, self.settings.fabric)
        for number in range(self.settings.loop.rounds):
            row = self.journal.get(prompt.id, arm, number) or self.round(prompt, arm, number, session)
            if arm == "fabric":
                session.liked.extend(self._references(row.liked))
                session.disliked.extend(self._references(row.disliked))
            advance(1)

    def _references(self, names: Sequence[str]) -> list[Any]:
        from visfeedback.sampling.fabric.references import read_references

        return read_references([self.out / name for name in names])

    def round(self, prompt: Prompt, arm: Arm, number: int, session: FabricSession) -> Round:
        """Draw, ask, measure, write down."""
        loop, count = self.settings.loop, self._count(prompt, arm, number)
        seeds = [derive_seed(loop.seed, prompt.id, 1000 * number + k) for k in range(count)]
        texts = [dropped(prompt.text, loop.dropout, seed) if arm == "prompt_dropout" else prompt.text for seed in seeds]
        began, before = time.perf_counter(), session.passes
        with session:  # without references it is the plain pipeline
            images = self.draw(prompt, texts, seeds)
        seconds = time.perf_counter() - began
        files = tuple(
            self._save(image, f"images/{arm}/{prompt.id}-r{number}-{k}.png") for k, image in enumerate(images)
        )
        wishes = self.wish(prompt, images)
        order = np.argsort(np.asarray(wishes[: loop.images]), kind="stable")
        disliked = [files[k] for k in order[: loop.dislikes]]
        liked = [files[k] for k in order[::-1][: loop.likes] if files[k] not in disliked]
        return self.journal.add(Round(
            prompt_id=prompt.id, prompt=prompt.text, arm=arm, round=number, files=files, seeds=tuple(seeds),
            preferences=tuple(map(float, wishes)), right=self._right(prompt, images), liked=tuple(liked),
            disliked=tuple(disliked), **self._measures(prompt, images[: loop.images], number),
            picked=self._picked(prompt, images, wishes, number), passes=session.passes - before,
            seconds=seconds,
        ))  # fmt: skip

    def _count(self, prompt: Prompt, arm: Arm, number: int) -> int:
        """Images of a round; without feedback also those that the references' passes would have paid for."""
        row = self.journal.get(prompt.id, "fabric", number) if arm == "none" else None
        rows = self.drawing.steps * (2 if (self.drawing.guidance or 0) > 1 else 1)  # type: ignore[operator]
        return self.settings.loop.images + (math.ceil(row.passes / rows) if row else 0)

    def _save(self, image: Image.Image, name: str) -> str:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return name

    def _right(self, prompt: Prompt, images: Sequence[Image.Image]) -> tuple[bool, ...]:
        """What the verifier of the prompt's, the user's or the model's world says; empty outside of worlds."""
        named = (prompt.source, f"{self.settings.user.name}:", self.settings.model.id)
        place = next((ref[0] for ref in map(split_reference, named) if ref is not None), None)
        if place is None or not hasattr(world(place), "verifier"):
            return ()
        verifier = world(place).verifier()
        return tuple(verifier.verify(prompt.text, image).right for image in images)

    def _measures(self, prompt: Prompt, images: Sequence[Image.Image], number: int) -> Measured:
        target = self.targets.get(prompt.id)
        return measure(images, prompt, number, self.out, self.journal, self.features, target)

    def _picked(self, prompt: Prompt, images: Sequence[Image.Image], wishes: Sequence[float], number: int) -> Measured:
        """The same of the images that best_of_n shows, where there are more to choose from."""
        count = self.settings.loop.images
        if len(images) <= count:
            return {}
        return self._measures(prompt, [images[k] for k in _rounds_summary.best(wishes, count)], number)


def dropped(text: str, share: float, seed: int) -> str:
    """The text without about ``share`` of its words; one is always left."""
    words, source = text.split(), random.Random(seed)
    kept = [word for word in words if source.random() >= share]
    return " ".join(kept or [source.choice(words)])
