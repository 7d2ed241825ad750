"""Live images for `visfeedback collect --model`: drawn in the background, ahead of the people who judge them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pydantic import Field

from visfeedback.app.choosing import question
from visfeedback.app.protocols import Drawing
from visfeedback.plugins import InputError
from visfeedback.types.records import Frozen, Prompt, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

    from visfeedback.app.choosing import Asking
    from visfeedback.store import Store
    from visfeedback.store.desk import Desk

PAUSE = 0.5  # seconds between looks at the queue


class Live(Frozen):
    """How images are drawn while people judge."""

    ahead: int = Field(default=24, ge=1)
    """questions that wait for somebody; fewer are filled up in the background"""
    batch: int = Field(default=4, ge=1)
    """questions whose images are drawn at once"""
    steps: int | None = Field(default=None, ge=1)
    """denoising steps; the model's own when left out"""
    guidance: float | None = Field(default=None, ge=0)
    """classifier-free guidance scale; the model's own when left out"""
    sampler: str = ""
    """ddim, euler, ...; the model's own when left out"""
    dtype: str = "fp32"
    """precision of the networks: fp32, bf16 or fp16"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


class Painter:
    """One pipeline and its candidate adapters; satisfies `app.protocols.Generator`.

    Candidates are the base model and each adapter; of one prompt two of them draw with the same seed, so that the
    adapter is the only difference. A base model alone competes with itself under two seeds.
    """

    def __init__(
        self, model: str, adapters: Sequence[str], prompts: Sequence[Prompt], live: Live, asking: Asking, store: Store,
        desk: Desk,
    ) -> None:  # fmt: skip
        from visfeedback.backbones.load import load_pipeline
        from visfeedback.sampling.render import GenerateSettings, resolve

        self.model, self.store, self.desk, self.live, self.asking = model, store, desk, live, asking
        self.device = threading.RLock()
        """whoever uses the pipeline holds it"""
        self._loaded = load_pipeline(model, dtype=live.dtype, device=live.device)  # type: ignore[arg-type]
        self.pipe: Any = self._loaded.pipe
        chosen = GenerateSettings(
            steps=live.steps, guidance=live.guidance, sampler=live.sampler, batch_size=asking.size * live.batch
        )
        self.settings = resolve(chosen, self.pipe)
        self._candidates: dict[str, str] = {"": ""}  # adapter as it was named -> its name in the pipeline
        for adapter in adapters:
            self._attach(adapter)
        self._prompts = list(prompts)
        self._random = random.Random(asking.seed)
        self._turns = self._next_prompts()
        self._drawn = 0
        self._problem = ""
        self._end, self._call = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)

    # what the app may ask

    def status(self) -> Drawing:
        names = tuple(adapter or "base" for adapter in self._candidates)
        return Drawing(self._thread.is_alive(), self._waiting(), self._drawn, names, self._problem)

    def wake(self) -> None:
        self._call.set()

    def add_candidate(self, adapter: str) -> None:
        """Also starts the drawing, where so far a set of images was judged."""
        self._attach(adapter)
        self.start()

    def _attach(self, adapter: str) -> None:
        from visfeedback.backbones.adapters import attach

        with self.device:
            if adapter in self._candidates:
                return
            name = f"candidate_{len(self._candidates)}"
            attach(self.pipe, adapter, name)
            self.pipe.to(self.pipe.device)
            self._candidates[adapter] = name

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], adapter: str = "") -> list[Image]:
        from visfeedback.sampling.render import render

        if adapter not in self._candidates:
            self._attach(adapter)
        size, images = self.settings.batch_size, []
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            with self.device:
                self._use(adapter)
                images += render(
                    self.pipe, [prompt.text for prompt in part], list(seeds[start : start + size]),
                    settings=self.settings, negatives=[prompt.negative for prompt in part],
                )  # fmt: skip
        return images

    def keep(self, prompts: Sequence[Prompt], seeds: Sequence[int], adapter: str = "") -> list[Sample]:
        drawn = [
            self._sample(prompt, seed, image, adapter)
            for prompt, seed, image in zip(prompts, seeds, self.draw(prompts, seeds, adapter), strict=True)
        ]
        self.store.add_drawn(drawn)
        return [one.sample for one in drawn]

    # in the background

    def start(self) -> None:
        with self.device:
            if not self._thread.ident:
                self._thread.start()

    def stop(self) -> None:
        """What is being drawn is finished and kept."""
        self._end.set()
        self._call.set()
        if self._thread.ident:
            self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                asked = self._call.is_set()
                self._call.clear()
                if asked or self._waiting() < self.live.ahead:
                    self._fill()
                else:
                    self._call.wait(PAUSE)
        except Exception as error:  # the thread's end is said where people see it; voting goes on
            self._problem = " ".join(f"{type(error).__name__}: {error}".split())

    def _waiting(self) -> int:
        """Pairs that nobody has yet."""
        found = self.desk.progress()
        return max(0, found["wanted"] - found["answered"] - found["leased"])

    def _fill(self) -> None:
        """Another few prompts, each drawn by two candidates, become tasks."""
        turns = [next(self._turns) for _ in range(self.live.batch)]
        by_adapter: dict[str, list[tuple[int, Prompt, int]]] = {}
        for number, (prompt, sides) in enumerate(turns):
            for adapter, seed in sides:
                by_adapter.setdefault(adapter, []).append((number, prompt, seed))
        found: dict[int, list[Sample]] = {}
        for adapter, jobs in by_adapter.items():
            samples = self.keep([prompt for _, prompt, _ in jobs], [seed for *_, seed in jobs], adapter)
            self._drawn += len(samples)
            for (number, *_), sample in zip(jobs, samples, strict=True):
                found.setdefault(number, []).append(sample)
            if self._end.is_set():
                return
        whole = [images for images in found.values() if len({one.id for one in images}) == self.asking.size]
        self.desk.add([question(images, self.asking, self._random) for images in whole])

    def _next_prompts(self) -> Iterator[tuple[Prompt, list[tuple[str, int]]]]:
        """Prompt after prompt in a shuffled order, each with (adapter, seed) of its images, all seeds new."""
        fresh = _Seeds(self.asking.seed, ((sample.prompt_id, sample.seed) for sample in self.store.samples(False)))
        for turn, prompt in enumerate(self._rounds()):
            names = self._who_draws(turn)
            seeds = [fresh.of(prompt) for _ in range(0, self.asking.size, len(names))]
            yield prompt, [(names[i % len(names)], seeds[i // len(names)]) for i in range(self.asking.size)]

    def _who_draws(self, turn: int) -> Sequence[str]:
        """Two candidates for a pair, every two in turn; all of them for other questions."""
        pairs = list(combinations(self._candidates, 2)) if self.asking.kind == "pair" else []
        return pairs[turn % len(pairs)] if pairs else list(self._candidates)

    def _rounds(self) -> Iterator[Prompt]:
        while True:
            yield from self._random.sample(self._prompts, len(self._prompts))

    # one image

    def _use(self, adapter: str) -> None:
        from visfeedback.backbones.adapters import activate

        if len(self._candidates) == 1:
            return
        for network in (self.pipe.unet, self.pipe.text_encoder):
            activate(network, self._candidates[adapter] or None, trainable=False)

    def _sample(self, prompt: Prompt, seed: int, image: Image, adapter: str) -> Any:
        from visfeedback.sampling.generate import Job, Origin, _png
        from visfeedback.store.core import Drawn
        from visfeedback.store.images import inspect

        origin = Origin(self.pipe, self.model, self._loaded.revision, adapter, "")
        sample = origin.sample(Job(prompt, 0, seed), image, self.settings).model_copy(update={"path": ""})
        data = _png(image)
        return Drawn(sample, data, inspect(data, "a drawn image"))


class _Seeds:
    """New seeds of each prompt, from where those in the store end: a restart draws nothing twice."""

    def __init__(self, seed: int, known: Iterable[tuple[str, int | None]]) -> None:
        self._seed, self._known = seed, set(known)
        self._k: dict[str, int] = {}

    def of(self, prompt: Prompt) -> int:
        from visfeedback.sampling.generate import derive_seed

        while True:
            k = self._k.get(prompt.id, 0)
            self._k[prompt.id] = k + 1
            found = derive_seed(self._seed, prompt.id, k)
            if (prompt.id, found) not in self._known:
                return found


def prompts_for(model: str, named: str) -> str:
    """Where prompts come from: what was named, else the training prompts of the model's world."""
    from visfeedback.plugins import split_reference

    world = split_reference(model)
    if named or world is None:
        if not named:
            raise InputError(f"which prompts shall {model} draw? give --prompts FILE.txt, or a text")
        return named
    return f"{world[0]}:train"
