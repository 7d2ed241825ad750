"""Train a LoRA from preferences as a preset says; every knob of the preset is a flag.

The result is a run folder: adapter/ for diffusers, report.html, metrics.jsonl, checkpoints. With --resume a run that
was stopped goes on and ends as if it never was. On several devices: accelerate launch scripts/train.py with the same
arguments.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from visfeedback import config, plugins
from visfeedback.cli.console import Console, parse
from visfeedback.plugins import InputError

if TYPE_CHECKING:
    from visfeedback.training.settings import TrainSettings

USAGE = "visfeedback train CONFIG.toml --out DIR [--resume] [flags]; presets: visfeedback presets"


def run(args: list[str], console: Console) -> dict[str, Any]:
    preset, flags = _preset(args)
    settings, out, resume = _parse(preset, flags)
    from visfeedback.training.fit import fit

    command = f"visfeedback train {shlex.join(args)}"
    summary = fit(settings, out, resume, console.progress, command.replace(" --resume", ""))
    console.info(_sentence(summary, out))
    return summary


def _preset(args: list[str]) -> tuple[Path | None, list[str]]:
    """CONFIG.toml, the first argument that is no flag or flag's value, and the rest. Only --help may do without."""
    if (place := _place(args)) is not None:
        return Path(args[place]), args[:place] + args[place + 1 :]
    if {"-h", "--help"} & set(args):
        return None, args
    raise InputError(f"no preset given; expected {USAGE}")


def _place(args: list[str]) -> int | None:
    """Where the preset stands. A .toml is one even behind a switch (--data.group), which looks like a flag with its
    value; and of what is no flag's first value it comes before others, which may be second ones (--data.times 0 1)."""
    places = [i for i in range(len(args)) if _is_preset(args, i)]
    behind = [i for i, arg in enumerate(args) if arg.endswith(".toml") and not arg.startswith("-") and "@" not in arg]
    return next(iter([*(i for i in places if i in behind), *behind, *places]), None)


def _is_preset(args: list[str], place: int) -> bool:
    before = args[place - 1] if place else ""
    takes_value = before.startswith("--") and "=" not in before and before != "--resume"
    return not args[place].startswith("-") and (not takes_value or place == 0)


def _parse(preset: Path | None, flags: list[str]) -> tuple[TrainSettings, Path, bool]:
    """The preset with the flags laid over it: `[method] name` first, for it decides which flags there are."""
    from visfeedback.training.settings import settings_for

    table = config.read_toml(preset) if preset else {"method": {"name": "dpo"}}
    name = _method(table, flags, preset)
    kind = settings_for(name)
    if name != _named(table):  # another method by flag: its own defaults
        table = {**table, "method": {"name": name}}
    base = config.build(kind, table, str(preset))
    flags_too = create_model(
        "Train", __base__=kind,
        out=(Path, Field(description="the run folder; must be new or empty unless --resume")),
        resume=(bool, Field(default=False, description="go on with the run in --out")),
    )  # fmt: skip
    default = flags_too.model_construct(**{k: getattr(base, k) for k in kind.model_fields})
    given = parse(flags_too, flags, "visfeedback train CONFIG.toml", __doc__ or "", default=default)
    values = {key: getattr(given, key) for key in kind.model_fields}
    return kind.model_construct(**values), given.out, given.resume  # pyright: ignore[reportAttributeAccessIssue]


def _method(table: dict[str, Any], flags: list[str], preset: Path | None) -> str:
    for i, flag in enumerate(flags):
        if flag == "--method.name" and i + 1 < len(flags):
            return flags[i + 1]
        if flag.startswith("--method.name="):
            return flag.partition("=")[2]
    if (name := _named(table)) is None:
        if "loop" in table:
            raise InputError(f"{preset} is a program of several stages; type: visfeedback loop {preset}")
        known = ", ".join(plugins.names("methods"))
        raise InputError(f'{preset} names no method; expected [method] with name = "dpo" (known: {known})')
    return name


def _named(table: dict[str, Any]) -> str | None:
    """The method that a preset names."""
    section = table.get("method")
    name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) else None


def _sentence(summary: dict[str, Any], out: Path) -> str:
    parts = [f"{summary['steps']} steps in {summary['seconds']:.0f} s"]
    if "implicit_accuracy" in summary:
        parts.append(f"{summary['implicit_accuracy']:.0%} of training pairs ranked right")
    if "drift" in summary:
        parts.append(f"drift {summary['drift']:.2g}")
    return f"{', '.join(parts)}; adapter: {out / 'adapter'}, report: {out / 'report.html'}"
