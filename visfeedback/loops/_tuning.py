"""What programs that draw, filter or weigh, and train have in common: their sections, and each stage as a function.

May import everything but app and cli.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from visfeedback import feedback, rewards
from visfeedback import prompts as sources
from visfeedback.backbones.load import Dtype, load, load_pipeline
from visfeedback.evaluation.compare import CompareSettings, Panel, compare
from visfeedback.plugins import split_reference, world
from visfeedback.sampling.generate import GenerateSettings, generate
from visfeedback.sampling.samples import open_image
from visfeedback.training.fit import fit
from visfeedback.training.run import Run
from visfeedback.training.settings import Engine, Eval, Lora, Optim, settings_for
from visfeedback.types.files import read_jsonl, write_atomic
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


def scores_of(samples: Sequence[Sample], root: Path, reward: Any, progress: Progress, at_once: int = 32) -> list[float]:
    """A reward's scores of drawn images, each against its own prompt."""
    found: list[float] = []
    with progress(f"scoring with {reward.name}", len(samples)) as advance:
        for start in range(0, len(samples), at_once):
            part = samples[start : start + at_once]
            images = [open_image(sample, root) for sample in part]
            found += rewards.score(reward, images, [sample.prompt for sample in part]).tolist()
            advance(len(part))
    return found


def write_scored(file: Path, root: Path, samples: Sequence[Sample], rows: Sequence[Mapping[str, Any]]) -> None:
    """Images for training: prompt, path, and what the rows say (score, group, ...)."""
    listed = [
        {"prompt": sample.prompt, "image": beside(file, root / sample.path), **row}
        for sample, row in zip(samples, rows, strict=True)
    ]
    write_atomic(file, "".join(json.dumps(row) + "\n" for row in listed))


def beside(file: Path, image: Path) -> str:
    """The image as a list in ``file`` names it: by a relative path when it lies in the list's folder, so that both may
    be moved together, else by an absolute one."""
    folder, image = file.parent.absolute(), image.absolute()
    return image.relative_to(folder).as_posix() if image.is_relative_to(folder) else str(image)


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
        with suppress(FileNotFoundError):
            shutil.rmtree(out / "base")
        shutil.copytree(base / "base", out / "base")
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
