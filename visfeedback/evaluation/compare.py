"""Base against tuned: the same prompts, the same seeds, one pipeline whose adapter is switched off and on.

What lives here: drawing both sides, showing them to verifier, judge, rewards and measures, and drift and diversity.
The arithmetic is in ``outcomes.py`` and ``statistics.py``. A rerun with the same ``out`` keeps images already made.
May import: types, sampling.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from visfeedback.evaluation.outcomes import FILE, SIDES, Outcome, Seen, prompt_count, summarise
from visfeedback.evaluation.statistics import spread
from visfeedback.plugins import InputError
from visfeedback.rewards import score
from visfeedback.sampling.drift import drift
from visfeedback.sampling.generate import GenerateSettings, generate
from visfeedback.sampling.render import evaluating
from visfeedback.sampling.samples import open_image
from visfeedback.types.files import write_atomic
from visfeedback.types.memory import peak_mib
from visfeedback.types.protocols import Judge, Progress, Reward, Verifier, silent
from visfeedback.types.records import Frozen, Prompt, Sample

BATCH = 32
"""Images that a reward, or the drift measure, sees at once."""
DRIFT_IMAGES = 64
"""Base images, the first of each prompt, on which drift is measured."""
DRIFT_DRAWS = 4
"""(noise, time) draws for each of them."""

EMPTY = Image.new("RGB", (64, 64))
"""A picture for those who only have to read the prompt."""

Measure = Callable[[Image.Image], float]


class CompareSettings(Frozen):
    """How many images, and how they are drawn."""

    per_prompt: int = Field(default=2, ge=1)
    """images of each prompt on each side"""
    seed: int = Field(default=0, ge=0, lt=2**53)
    """images, intervals and the order in which a judge sees the sides follow from it"""
    generate: GenerateSettings = GenerateSettings()
    """steps, guidance, size, batch"""
    processes: int = Field(default=1, ge=1)
    """copies of the process that draw side by side on a Linux CPU"""


@dataclass(frozen=True)
class Panel:
    """Everybody who looks at the pictures. Only the judge and the verifier decide; the others are witnesses."""

    judge: Judge | None = None
    verifier: Verifier | None = None
    rewards: Sequence[Reward] = ()
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """functions of one image, by name"""


def compare(
    backbone: Any, prompts: Sequence[Prompt], settings: CompareSettings, panel: Panel, out: Path,
    progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Draw both sides into ``out/base`` and ``out/tuned``, judge them, and return the summary (also in the page).

    ``backbone``: a Backbone with an adapter, its ``pipe``, ``model``, ``revision`` and ``adapter``. Every pair goes
    to ``out/outcomes.jsonl``. ``seconds`` and ``peak_mib`` are of this call and this process, the first of up
    to ``processes``. Missing a verifier, accuracies are None and the difference is the first reward's, or the judge's.
    Raises InputError for no prompts, nobody to judge, a reward that comes twice, or a prompt that somebody of the panel
    cannot read, before anything is drawn; and for an image that a reward has no score for.
    """
    if not prompts:
        raise InputError("no prompts to compare on; give --prompts a file, a text or shapes:heldout")
    if not (panel.judge or panel.verifier or panel.rewards):
        raise InputError("nobody looks at the pictures; give --judge verifier:shapes or --reward NAME")
    started = time.monotonic()
    check_readable(prompts, panel)
    drawn = draw(backbone, prompts, settings, out, progress)
    outcomes = judge(prompts, drawn, panel, out, settings.seed, progress)
    write_atomic(out / FILE, "".join(o.model_dump_json() + "\n" for o in outcomes))
    return {
        "seed": settings.seed,
        "judge": panel.judge.name if panel.judge else "",
        "n_prompts": prompt_count(outcomes),
        "images_per_prompt": settings.per_prompt,
        **summarise(outcomes, seed=settings.seed),
        "drift": measure_drift(backbone, drawn["base"], out, settings.seed, progress),
        "diversity": {side: diversity(drawn[side], out) for side in SIDES},
        "adapter": backbone.adapter,
        "model": backbone.model,
        "revision": backbone.revision,
        "seconds": round(time.monotonic() - started, 2),
        "peak_mib": peak_mib(),
        "processes": settings.processes,
    }


@torch.no_grad()
def check_readable(prompts: Sequence[Prompt], panel: Panel) -> None:
    """Show every prompt to whoever may refuse one, with an empty picture: that costs less than drawing for nothing.

    A judge is asked by its method ``check_prompt``, if it has one. Raises InputError, theirs.
    """
    _named(panel.rewards)
    check = getattr(panel.judge, "check_prompt", None)
    for prompt in prompts:
        if panel.verifier is not None:
            panel.verifier.verify(prompt.text, EMPTY)
        if check is not None:
            check(prompt, EMPTY)
    for reward in panel.rewards:
        for start in range(0, len(prompts), BATCH):
            reward.encode_texts([prompt.text for prompt in prompts[start : start + BATCH]])


def draw(
    backbone: Any, prompts: Sequence[Prompt], settings: CompareSettings, out: Path, progress: Progress
) -> dict[str, list[Sample]]:
    """Samples of both sides in the same order; paths are relative to ``out``."""
    drawn: dict[str, list[Sample]] = {}
    for side, weights in (("base", "reference"), ("tuned", "policy")):
        with backbone.weights(weights):
            samples = generate(
                backbone, prompts, settings.per_prompt, settings.seed, out / side, settings.generate,
                _saying(progress, f"drawing with the {side} model"), processes=settings.processes,
            )  # fmt: skip
        drawn[side] = [s.model_copy(update={"path": f"{side}/{s.path}"}) for s in samples]
    if [(s.prompt_id, s.seed) for s in drawn["base"]] != [(s.prompt_id, s.seed) for s in drawn["tuned"]]:
        raise InputError(f"{out} holds samples of another comparison; give another --out")
    return drawn


def _saying(progress: Progress, words: str) -> Progress:
    """``progress`` in our own words."""

    def said(description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return progress(words, total)

    return said


def judge(
    prompts: Sequence[Prompt], drawn: Mapping[str, Sequence[Sample]], panel: Panel, out: Path, seed: int,
    progress: Progress = silent,
) -> list[Outcome]:  # fmt: skip
    """Show every pair to the panel."""
    by_id = {prompt.id: prompt for prompt in prompts}
    seen = {side: _look(drawn[side], panel, out, f"looking at {side}", progress) for side in SIDES}
    rng = random.Random(seed)
    outcomes = []
    with progress("judging pairs", len(drawn["base"])) as advance:
        for row, (base, tuned) in enumerate(zip(drawn["base"], drawn["tuned"], strict=True)):
            prompt = by_id[base.prompt_id]
            win = _win(panel.judge, prompt, base, tuned, out, rng) if panel.judge else None
            outcomes.append(
                Outcome(prompt_id=prompt.id, prompt=prompt.text, category=prompt.category, seed=base.seed,
                        base=seen["base"][row], tuned=seen["tuned"][row], win=win)
            )  # fmt: skip
            advance(1)
    return outcomes


def _win(judge: Judge, prompt: Prompt, base: Sample, tuned: Sample, out: Path, rng: random.Random) -> float | None:
    """The tuned image's share of the judge's preference; sides are shown in random order, equal images are a tie."""
    swapped = rng.random() < 0.5
    if base.id == tuned.id:
        return 0.5
    samples = (tuned, base) if swapped else (base, tuned)
    feedback = judge.compare(prompt, samples, [open_image(sample, out) for sample in samples])
    shares = dict(zip(feedback.sample_ids, feedback.values, strict=False))
    return shares.get(tuned.id)


def _look(samples: Sequence[Sample], panel: Panel, out: Path, what: str, progress: Progress) -> list[Seen]:
    seen: list[Seen] = []
    with progress(what, len(samples)) as advance:
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            images = [open_image(sample, out) for sample in part]
            scores = {name: _scores(name, r, part, images) for name, r in _named(panel.rewards).items()}
            for row, (sample, image) in enumerate(zip(part, images, strict=True)):
                rewards = {name: values[row] for name, values in scores.items()}
                seen.append(_seen(sample, image, rewards, panel))
            advance(len(part))
    return seen


def _named(rewards: Sequence[Reward]) -> dict[str, Reward]:
    """Rewards by name, and by where they came from when two share a name. InputError for one that is there twice."""
    names = [reward.name for reward in rewards]
    found = {r.name if names.count(r.name) == 1 else f"{r.name} ({r.origin.model})": r for r in rewards}
    if len(found) < len(rewards):
        raise InputError(f"--reward names one twice; it names {', '.join(names)}: name each once")
    return found


def _scores(name: str, reward: Reward, samples: Sequence[Sample], images: Sequence[Image.Image]) -> list[float]:
    """Of each image. A mean over some images only would compare different ones, so InputError where one is missing."""
    scores = score(reward, images, [sample.prompt for sample in samples]).tolist()
    for sample, value in zip(samples, scores, strict=True):
        if not math.isfinite(value):
            raise InputError(
                f"{name} has no score for {sample.path} ({sample.prompt!r}); leave it out, or give other --prompts"
            )
    return scores


def _seen(sample: Sample, image: Image.Image, rewards: dict[str, float], panel: Panel) -> Seen:
    measures = {name: float(measure(image)) for name, measure in panel.measures.items()}
    plain = Seen(sample_id=sample.id, path=sample.path, rewards=rewards, measures=measures)
    if panel.verifier is None:
        return plain
    verdict = panel.verifier.verify(sample.prompt, image)
    return plain.model_copy(update={"right": verdict.right, "score": verdict.score, "aspects": verdict.aspects})


# ------------------------------------------------------------------------------------------- drift and diversity


@torch.no_grad()
def measure_drift(
    backbone: Any, samples: Sequence[Sample], out: Path, seed: int, progress: Progress = silent
) -> float:  # fmt: skip
    """``sampling.drift`` on the latents of the first base image of each of the first 64 prompts."""
    first = list({sample.prompt_id: sample for sample in reversed(samples)}.values())[::-1][:DRIFT_IMAGES]
    generator = torch.Generator("cpu").manual_seed(seed)
    total = 0.0
    with evaluating(backbone.pipe), progress("measuring the drift", len(first)) as advance:
        for start in range(0, len(first), BATCH):
            part = first[start : start + BATCH]
            pixels = torch.stack([_pixels(sample, out) for sample in part])  # (B, 3, H, W) in [0, 1]
            latents, _ = backbone.encode(pixels.to(backbone.device))
            condition = backbone.encode_text([sample.prompt for sample in part])
            total += len(part) * drift(backbone, latents, condition, generator, DRIFT_DRAWS)
            advance(len(part))
    return total / len(first)


def _pixels(sample: Sample, out: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(open_image(sample, out))).permute(2, 0, 1).float() / 255


def diversity(samples: Sequence[Sample], out: Path) -> float | None:
    """Mean RMS pixel distance in [0, 1] between images of the same prompt; None with one image a prompt."""
    by_prompt: dict[str, list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt_id, []).append(sample)
    spreads = [
        spread(np.stack([np.asarray(open_image(sample, out)) / 255 for sample in group]))
        for group in by_prompt.values()
    ]
    known = [value for value in spreads if value is not None]
    return float(np.mean(known)) if known else None
