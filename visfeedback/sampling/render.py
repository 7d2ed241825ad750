"""One batch of images through an ordinary call of the pipeline, with one generator for each image.

The noise of an image comes from ``torch.Generator("cpu").manual_seed(seed)`` and nothing else, so a stock pipeline
call with that generator makes the same image.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field, model_validator

from visfeedback.plugins import InputError
from visfeedback.sampling.samplers import sampler_class, use_sampler
from visfeedback.types.records import Frozen

DEFAULTS_FILE = "visfeedback.json"
"""in a model's folder: the steps and guidance that suit it"""


class GenerateSettings(Frozen):
    """How images are drawn."""

    steps: int | None = Field(default=None, ge=1, le=1000)
    """denoising steps; the model's own, else 20, when left out"""
    guidance: float | None = Field(default=None, ge=0)
    """classifier-free guidance scale; the model's own, else its pipeline's default, when left out"""
    height: int | None = Field(default=None, ge=8, multiple_of=8)
    """pixels, together with width; the model's own when left out"""
    width: int | None = Field(default=None, ge=8, multiple_of=8)
    """pixels, together with height"""
    batch_size: int = Field(default=16, ge=1)
    """images drawn at once; halved when memory runs out; no image depends on it"""
    sampler: str = ""
    """ddim, euler, dpm++2m, or a diffusers scheduler class; the model's own when left out"""

    @model_validator(mode="after")
    def _both_sides(self) -> GenerateSettings:
        if (self.height is None) != (self.width is None):
            raise ValueError("give height and width together")
        return self


def resolve(settings: GenerateSettings, pipe: Any) -> GenerateSettings:
    """Fill in what was left out: steps, guidance and the sampler's class name. Size stays open when it is the model's.

    Raises InputError for an unknown sampler.
    """
    defaults = model_defaults(pipe)
    guidance = defaults.get("guidance", _signature(pipe)["guidance_scale"].default)
    filled = {
        "steps": settings.steps or defaults.get("steps", 20),
        "guidance": float(guidance if settings.guidance is None else settings.guidance),
        "sampler": sampler_class(pipe.scheduler, settings.sampler).__name__,
    }
    return settings.model_copy(update=filled)


def model_defaults(pipe: Any) -> dict[str, Any]:
    """``steps`` and ``guidance`` from `visfeedback.json` in the folder that the pipeline was loaded from, if any."""
    file = Path(str(pipe.config.get("_name_or_path", ""))) / DEFAULTS_FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
        return {key: kind(found[key]) for key, kind in (("steps", int), ("guidance", float)) if key in found}
    except (ValueError, TypeError) as error:
        raise InputError(f'{file}: expected {{"steps": 20, "guidance": 4.0}}: {error}') from None


def render(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    settings: GenerateSettings,
    negatives: Sequence[str] = (),
) -> list[Image.Image]:
    """RGB images, one for each prompt and seed; ``negatives`` is empty or has one text for each prompt.

    At one batch shape an image is the same bit for bit whatever its neighbours are; shapes differ by up to 2/255.
    """
    settings = resolve(settings, pipe)
    call: dict[str, Any] = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance}
    if settings.height is not None:
        call |= {"height": settings.height, "width": settings.width}
    if any(negatives):
        if "negative_prompt" not in _signature(pipe):
            raise InputError(f"{type(pipe).__name__} knows no negative prompts; leave them out")
        call["negative_prompt"] = list(negatives)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with use_sampler(pipe, settings.sampler), evaluating(pipe):
        images = pipe(prompt=list(prompts), generator=generators, **call).images
    return [image.convert("RGB") for image in images]


@contextmanager
def evaluating(pipe: Any) -> Iterator[None]:
    """No dropout inside the block, also for a pipeline that is being trained: its noise would come from elsewhere."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    training = [module for part in parts for module in part.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _signature(pipe: Any) -> Any:
    return inspect.signature(type(pipe).__call__).parameters
