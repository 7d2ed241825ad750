"""Draw images of prompts with a model, seeded and resumable; liked and disliked images may steer it (FABRIC)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from visfeedback.cli.console import Console, parse
from visfeedback.plugins import InputError
from visfeedback.sampling.fabric.settings import FabricSettings
from visfeedback.types.records import Frozen, Prompt


class Generate(Frozen):
    """Which model draws what, and where the images go."""

    model: str
    """hub id, diffusers folder, .safetensors or .ckpt file, or shapes:sd"""
    prompts: str
    """a text, a .txt or .jsonl file, or shapes:heldout:64"""
    out: Path
    """folder for images/ and samples.jsonl; what is there already is kept"""
    per_prompt: int = Field(default=1, ge=1)
    """images of each prompt"""
    seed: int = Field(default=0, ge=0)
    """every image has its own seed, which follows from this one, the prompt and the image's number"""
    adapter: str = ""
    """LoRA to draw with: folder, file or hub id"""
    negative: str = ""
    """what not to draw, for prompts that do not say it themselves"""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """denoising steps; the model's own, else 20, when left out"""
    guidance: float | None = Field(default=None, ge=0)
    """classifier-free guidance scale; the model's own when left out"""
    height: int | None = Field(default=None, ge=8, multiple_of=8)
    """pixels, a multiple of 8, together with width; the model's own when left out"""
    width: int | None = Field(default=None, ge=8, multiple_of=8)
    """pixels, a multiple of 8, together with height"""
    sampler: str = ""
    """ddim, euler, dpm++2m, ... or a diffusers scheduler class; the model's own when left out"""
    batch_size: int = Field(default=16, ge=1)
    """images drawn at once; halved when memory runs out"""
    processes: int = Field(default=1, ge=1)
    """on a Linux CPU: processes that draw side by side, a core each, at most OMP_NUM_THREADS; for small models"""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """precision of the networks"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    config: str = ""
    """for a single-file model: diffusers folder or hub id with its configuration; guessed when left out"""
    like: tuple[str, ...] = ()
    """image files to follow, without training"""
    dislike: tuple[str, ...] = ()
    """image files to keep away from"""
    fabric: FabricSettings = FabricSettings()
    """how --like and --dislike act"""


def run(args: list[str], console: Console) -> dict[str, Any]:
    from visfeedback import prompts
    from visfeedback.backbones.load import load_pipeline
    from visfeedback.sampling.fabric.references import read_references
    from visfeedback.sampling.fabric.session import FabricSession
    from visfeedback.sampling.generate import GenerateSettings, generate
    from visfeedback.sampling.samples import SAMPLES

    flags = parse(Generate, args, prog="visfeedback generate", description=__doc__ or "")
    shared = set(GenerateSettings.model_fields) & set(Generate.model_fields)
    settings = GenerateSettings(**flags.model_dump(include=shared))
    asked = [_with_negative(prompt, flags.negative) for prompt in prompts.load(flags.prompts)]
    liked, disliked = read_references(flags.like), read_references(flags.dislike)
    if not liked and not disliked and flags.fabric != FabricSettings():
        raise InputError("--fabric says how references act, and there are none; give --like or --dislike IMAGE")
    if (liked or disliked) and flags.fabric.prompt is None:  # the passes have the batch's first text
        settings = settings.model_copy(update={"batch_size": 1})
    loaded = load_pipeline(
        flags.model, adapter=flags.adapter, dtype=flags.dtype, device=flags.device, config=flags.config
    )
    kept, began = _listed(flags.out / SAMPLES), time.perf_counter()
    rest = (asked, flags.per_prompt, flags.seed, flags.out, settings, console.progress)
    if liked or disliked:
        session = FabricSession(loaded.pipe, flags.fabric)
        session.liked, session.disliked = liked, disliked
        with session:
            samples = generate(loaded, *rest, {"fabric": session.record()}, processes=flags.processes)
    else:
        samples = generate(loaded, *rest, processes=flags.processes)
    seconds, made = time.perf_counter() - began, sum(sample.path not in kept for sample in samples)
    console.info(f"{made} images drawn in {seconds:.1f} s, {len(samples) - made} were there: {flags.out / SAMPLES}")
    return {
        "command": "generate", "model": loaded.model, "revision": loaded.revision, "adapter": loaded.adapter,
        "seed": flags.seed, "n_prompts": len(asked), "images": len(samples), "made": made, "seconds": seconds,
        "images_per_second": made / seconds, "out": str(flags.out), "samples": str(flags.out / SAMPLES),
    }  # fmt: skip


def _listed(file: Path) -> set[str]:
    """Paths of the images that are there before we start."""
    from visfeedback.types.files import read_jsonl
    from visfeedback.types.records import Sample

    return {s.path for s in read_jsonl(file, Sample) if (file.parent / s.path).is_file()} if file.exists() else set()


def _with_negative(prompt: Prompt, negative: str) -> Prompt:
    """The prompt with the negative text, which is part of its id, unless it has one."""
    if prompt.negative or not negative:
        return prompt
    rest = prompt.model_dump(exclude={"id", "text", "negative"})
    return Prompt.of(prompt.text, negative, **rest)
