"""What programs that draw, filter or weigh, and train have in common: their sections, and each stage as a function.

May import everything but app and cli.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from visfeedback import feedback, rewards
from visfeedback import prompts as sources
from visfeedback.backbones.load import Dtype, load, load_pipeline
from visfeedback.evaluation.compare import CompareSettings, Panel, compare
from visfeedback.loops._folders import beside, copy_whole
from visfeedback.plugins import InputError, split_reference, world
from visfeedback.sampling.generate import GenerateSettings, generate
from visfeedback.sampling.samples import open_image
from visfeedback.training.fit import fit
from visfeedback.training.run import Run
from visfeedback.training.scorer import Scorer, Silent, Unscored
from visfeedback.training.settings import Engine, Eval, Lora, Optim, settings_for
from visfeedback.types.files import append_jsonl, read_jsonl, write_atomic
from visfeedback.types.protocols import Progress
from visfeedback.types.records import Frozen, Prompt, Sample

__all__ = ["Engine", "Evaluation", "Lora", "Model", "Optim", "Pictures"]


class Model(Frozen):
    """The network that draws and learns."""

    id: str = "shapes:sd"
    """hub id, local diffusers folder, single-file checkpoint, or a world such as `shapes:sd`"""
    dtype: Dtype = "fp32"
    """precision of the frozen weights"""


class Pictures(Frozen):
    """What is drawn, and what real images there are."""

    prompts: tuple[str, ...] = Field(default=("shapes:train:96",), min_length=1)
    """texts, files, or shapes:train:96; what is learned from"""
    real: str = ""
    """images to stay close to: `renders` = pictures that the prompts' own world draws of them; a folder or file of
    images with prompts; empty for none"""
    times: tuple[float, float] = (0.0, 1.0)
    """part of the noise schedule that training times are drawn from; 1 = pure noise"""


class Evaluation(Frozen):
    """Base against tuned, on prompts that nothing was learned from."""

    prompts: tuple[str, ...] = Field(default=("shapes:heldout:98",), min_length=1)
    """texts, files, or shapes:heldout:98"""
    judge: str = "verifier:shapes"
    """who decides the win rate; empty for nobody"""
    rewards: tuple[str, ...] = ()
    """further witnesses: NAME[:VARIANT][@PATH]"""
    per_prompt: int = Field(default=2, ge=1)
    """images of each prompt on each side; with 2 or more their diversity is measured"""
    steps: int = Field(default=0, ge=0, le=1000)
    """of denoising; 0 = as many as [generate] says"""
    seed: int = Field(default=7, ge=0, lt=2**53)
    """of images and intervals; another one than training's"""


def prompts_of(named: Sequence[str]) -> list[Prompt]:
    """Each prompt of the sources once."""
    return list({prompt.id: prompt for source in named for prompt in sources.load(source)}.values())


def check(real: str, settings: Evaluation) -> None:
    """Raises InputError for files that would only be missed after hours."""
    if real not in ("", "renders") and not Path(real).expanduser().exists():
        raise InputError(
            f"no {real}; --data.real is a folder or file of images with prompts, `renders`, or '' for none"
        )
    prompts_of(settings.prompts)


def draw(
    model: Model, engine: Engine, prompts: Sequence[Prompt], per_prompt: int, seed: int, out: Path,
    settings: GenerateSettings, progress: Progress, adapter: str = "",
) -> list[Sample]:  # fmt: skip
    """Images of the model, or of the model with an adapter; those that are there are kept."""
    loaded = load_pipeline(model.id, adapter=adapter, dtype=model.dtype, device=engine.device)
    return generate(loaded, prompts, per_prompt, seed, out, settings, progress)


def drawn(out: Path) -> list[Sample]:
    """The images that ``draw`` made."""
    return list(read_jsonl(out / "samples.jsonl", Sample))


class Score(Frozen):
    """One line of a file of scores."""

    prompt_id: str
    id: str
    """of the sample"""
    score: float


def scores_of(
    samples: Sequence[Sample], root: Path, scorer: Scorer, kept: Path, progress: Progress, at_once: int = 32
) -> list[float]:
    """A reward's scores of drawn images, each against its own prompt. They go to the file ``kept`` a few at a time, and
    those that are in it are not asked again. Raises Unscored, saying how to go on."""
    rows = read_jsonl(kept, Score) if kept.exists() else ()
    found = {(row.prompt_id, row.id): row.score for row in rows}
    left = [sample for sample in samples if (sample.prompt_id, sample.id) not in found]
    with progress(f"scoring with {scorer.reward.name}", len(samples)) as advance:
        advance(len(samples) - len(left))
        for start in range(0, len(left), at_once):
            part = left[start : start + at_once]
            scores = _asked(scorer, part, root)
            made = [Score(prompt_id=s.prompt_id, id=s.id, score=x) for s, x in zip(part, scores, strict=True)]
            append_jsonl(kept, made)
            found |= {(row.prompt_id, row.id): row.score for row in made}
            advance(len(part))
    return [found[sample.prompt_id, sample.id] for sample in samples]


def _asked(scorer: Scorer, part: Sequence[Sample], root: Path) -> list[float]:
    images = [open_image(sample, root) for sample in part]
    try:
        return scorer(images, [sample.prompt for sample in part])[:, 0].tolist()
    except Silent as error:
        raise Silent(f"{error}; the scores before are kept, go on with --resume") from None
    except Unscored as error:
        raise Unscored(f"{error}; other settings need another --out") from None


def write_scored(file: Path, root: Path, samples: Sequence[Sample], rows: Sequence[Mapping[str, Any]]) -> None:
    """Images for training: prompt, path, and what the rows say (score, group, ...)."""
    listed = [
        {"prompt": sample.prompt, "image": beside(file, root / sample.path), **row}
        for sample, row in zip(samples, rows, strict=True)
    ]
    write_atomic(file, "".join(json.dumps(row) + "\n" for row in listed))


def train(
    method: Mapping[str, Any], model: Model, optim: Optim, lora: Lora, engine: Engine, data: Mapping[str, Any],
    out: Path, progress: Progress, adapter: str = "",
) -> dict[str, Any]:  # fmt: skip
    """A run folder; goes on in one that was begun. With an adapter the reference stays the bare model."""
    name = str(method["name"])
    settings = settings_for(name).model_validate({
        "model": {"id": model.id, "dtype": model.dtype, "adapter": adapter, "reference": "bare"},
        "method": dict(method), "data": dict(data), "optim": optim, "lora": lora, "engine": engine,
        "eval": Eval(count=0),
    })  # fmt: skip
    summary = fit(settings, out, not Run(out).empty, progress)
    kept = ("steps", "seconds", "images_seen", "images", "images_with_weight", "loss", "drift", "reward")
    return {key: summary[key] for key in kept if key in summary}


def evaluate(
    settings: Evaluation, model: Model, engine: Engine, adapter: Path, out: Path, drawing: GenerateSettings,
    progress: Progress, witnesses: Sequence[str] = (), base: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Base against tuned; ``base`` is a folder of an earlier comparison whose base images are the same."""
    if base is not None and not (out / "base" / "samples.jsonl").is_file():
        copy_whole(base / "base", out / "base")
    prompts = prompts_of(settings.prompts)
    backbone = load(model.id, adapter=str(adapter), dtype=model.dtype, device=engine.device)
    if settings.steps:
        drawing = drawing.model_copy(update={"steps": settings.steps})
    compared = CompareSettings(per_prompt=settings.per_prompt, seed=settings.seed, generate=drawing)
    return compare(
        backbone, prompts, compared, panel(settings, prompts, str(backbone.device), witnesses), out, progress
    )


def panel(settings: Evaluation, prompts: Sequence[Prompt], device: str, witnesses: Sequence[str]) -> Panel:
    """The judge, the verifier of the prompts' world, and rewards that only look on."""
    place = world_of(prompts)
    module = world(place) if place else None
    return Panel(
        judge=feedback.load(settings.judge) if settings.judge else None,
        verifier=module.verifier() if module and hasattr(module, "verifier") else None,
        rewards=[rewards.load(name, device) for name in dict.fromkeys((*witnesses, *settings.rewards))],
        measures={"render_distance": module.render_distance} if module and hasattr(module, "render_distance") else {},
    )


def world_of(prompts: Sequence[Prompt]) -> str:
    """The world that all prompts come from; empty when they do not come from one."""
    places = {reference[0] if (reference := split_reference(p.source)) else "" for p in prompts}
    return places.pop() if len(places) == 1 else ""
