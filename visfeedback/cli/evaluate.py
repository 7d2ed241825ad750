"""Compare a tuned model with its base on the same prompts and seeds: summary.json, report.html, pictures."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from visfeedback.cli.console import Console, parse
from visfeedback.plugins import InputError, split_reference, world
from visfeedback.types.records import Frozen, Prompt

if TYPE_CHECKING:
    from visfeedback.evaluation.compare import Panel


class EvaluateSettings(Frozen):
    """What is compared, on what, and who looks."""

    model: str = "shapes:sd"
    """hub id, local diffusers folder, single-file checkpoint, or shapes:sd"""
    adapter: str
    """the LoRA to judge: a folder (RUN/adapter), a file or a hub id"""
    prompts: str = "shapes:heldout"
    """a text, a file (txt, jsonl), or shapes:heldout[:N]"""
    reward: tuple[str, ...] = ()
    """rewards that look on: NAME[:VARIANT][@PATH], for example shapes_clip"""
    judge: str = ""
    """who decides the win rate; for prompts of the shapes world verifier:shapes when left out"""
    out: Path
    """folder for the results; the same command goes on where it was interrupted"""
    per_prompt: int = Field(default=2, ge=1)
    """images of each prompt on each side"""
    seed: int = Field(default=0, ge=0, lt=2**53)
    """all images and intervals follow from it"""
    steps: int | None = Field(default=None, ge=1)
    """denoising steps; the model's own when left out"""
    guidance: float | None = Field(default=None, ge=0)
    """classifier-free guidance; the model's own when left out"""
    batch_size: int | None = Field(default=None, ge=1)
    """images drawn at once"""
    processes: int = Field(default=1, ge=1)
    """on a Linux CPU: processes that draw side by side, a core each, at most OMP_NUM_THREADS; for small models"""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """precision of the networks"""
    device: str = "auto"
    """auto, cpu, cuda, ..."""


def run(args: list[str], console: Console) -> dict[str, Any]:
    settings = parse(EvaluateSettings, args, "visfeedback evaluate", __doc__ or "")
    if not settings.adapter:
        raise InputError("--adapter is empty: a model compared with itself says nothing; give RUN/adapter")
    command = f"visfeedback evaluate {shlex.join(args)}"
    summary = evaluate(settings, command, console)
    from visfeedback.evaluation.words import headline

    console.info(f"{headline(summary)} (judge {summary['judge'] or 'none'}, {summary['n_prompts']} prompts x "
                 f"{summary['images_per_prompt']}); report: {settings.out / 'report.html'}")  # fmt: skip
    return summary


def evaluate(settings: EvaluateSettings, command: str, console: Console) -> dict[str, Any]:
    """Compare and write ``summary.json`` and ``report.html``; returns the summary."""
    from visfeedback.evaluation import page
    from visfeedback.evaluation.outcomes import read_outcomes
    from visfeedback.report.page import write_page
    from visfeedback.types.files import write_json

    summary = {"command": command, **measure(settings, console)}
    write_json(settings.out / "summary.json", summary)
    about = f"The adapter `{settings.adapter}` on `{settings.model}`, against the same model without it."
    write_page(
        settings.out / "report.html",
        page.build(read_outcomes(settings.out), summary, settings.out, settings, "visfeedback evaluate", about),
    )
    return summary


def measure(settings: EvaluateSettings, console: Console) -> dict[str, Any]:
    """Everything of ``evaluate`` but the summary's ``command`` and the files made of the summary."""
    from visfeedback import prompts as sources
    from visfeedback.backbones import load as backbones
    from visfeedback.evaluation.compare import CompareSettings, compare

    _check_folder(settings.out)
    prompts = sources.load(settings.prompts)
    panel = invite(settings, prompts)
    backbone = backbones.load(settings.model, adapter=settings.adapter, dtype=settings.dtype, device=settings.device)
    drawing = {"steps": settings.steps, "guidance": settings.guidance, "batch_size": settings.batch_size}
    given = {key: value for key, value in drawing.items() if value is not None}
    compared = CompareSettings.model_validate(
        {"per_prompt": settings.per_prompt, "seed": settings.seed, "generate": given, "processes": settings.processes}
    )
    return compare(backbone, prompts, compared, panel, settings.out, console.progress)


def invite(settings: EvaluateSettings, prompts: list[Prompt]) -> Panel:
    """Judge, verifier, rewards and measures. A world's verifier looks on whenever the prompts are of that world."""
    from visfeedback import feedback, rewards
    from visfeedback.backbones.load import pick_device
    from visfeedback.evaluation.compare import Panel

    place = _world_of(settings, prompts)
    module = world(place) if place else None
    name = settings.judge or (f"verifier:{place}" if place else "")
    device = str(pick_device(settings.device))
    return Panel(
        judge=feedback.load(name) if name else None,
        verifier=module.verifier() if module else None,
        rewards=[rewards.load(reference, device) for reference in settings.reward],
        measures={"render_distance": module.render_distance} if module else {},
    )


def _world_of(settings: EvaluateSettings, prompts: list[Prompt]) -> str:
    """The world whose verifier can read these prompts; empty when they are anybody's."""
    named = [reference[0] for p in prompts if (reference := split_reference(p.source)) is not None]
    if prompts and len(named) == len(prompts):
        return named[0]
    kind, _, argument = settings.judge.partition(":")
    return argument if kind == "verifier" and hasattr(world_or_none(argument), "verifier") else ""


def world_or_none(name: str) -> Any:
    """The module of a world, or None when there is no such world."""
    return world(name) if split_reference(f"{name}:") else None


def _check_folder(out: Path) -> None:
    """Pictures of an earlier run are used again where they fit; a folder of other things is left alone."""
    if out.is_dir() and any(out.iterdir()) and not (out / "base").is_dir():
        raise InputError(f"{out} is not empty and holds no comparison; give another --out")
