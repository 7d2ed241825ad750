"""Run a program whose stages alternate, as a preset says: rounds of feedback, for example.

With --resume a run that was stopped goes on and ends as if it never was. Every knob of the preset is a flag.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from visfeedback import config, plugins
from visfeedback.cli.console import Console, parse
from visfeedback.plugins import InputError

USAGE = "visfeedback loop CONFIG.toml --out DIR [--resume] [flags]; presets: visfeedback presets"
DEFAULT = "fabric_rounds"
"""whose flags --help shows without a preset"""


def run(args: list[str], console: Console) -> dict[str, Any]:
    preset, flags = _preset(args)
    table = config.read_toml(preset) if preset else {"loop": {"name": DEFAULT}}
    program = plugins.load("loops", _name(table, preset))
    settings, out, resume = _parse(program.Settings, table, preset, flags)
    command = f"visfeedback loop {shlex.join(args)}".replace(" --resume", "")
    summary = program.run(settings, out, resume, console.progress, command)
    console.info(f"finished; report: {out / 'report.html'}, numbers: {out / 'summary.json'}")
    return summary


def _preset(args: list[str]) -> tuple[Path | None, list[str]]:
    """CONFIG.toml, the first argument, and the rest. Only --help may do without."""
    if args and not args[0].startswith("-"):
        return Path(args[0]), args[1:]
    if {"-h", "--help"} & set(args):
        return None, args
    raise InputError(f"no preset given; expected {USAGE}")


def _name(table: dict[str, Any], preset: Path | None) -> str:
    section = table.get("loop")
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        if isinstance(table.get("method"), dict) and "name" in table["method"]:
            raise InputError(f"{preset} is a single training; type: visfeedback train {preset}")
        known = ", ".join(plugins.names("loops"))
        raise InputError(f'{preset} names no loop; expected [loop] with name = "{DEFAULT}" (known: {known})')
    return section["name"]


def _parse(kind: Any, table: dict[str, Any], preset: Path | None, flags: list[str]) -> tuple[Any, Path, bool]:
    """The preset with the flags laid over it."""
    base = config.build(kind, table, str(preset))
    more = create_model(
        "Loop", __base__=kind,
        out=(Path, Field(description="the folder of the run; must be new or empty unless --resume")),
        resume=(bool, Field(default=False, description="go on with the run in --out")),
    )  # fmt: skip
    default = more.model_construct(**{key: getattr(base, key) for key in kind.model_fields})
    given = parse(more, flags, "visfeedback loop CONFIG.toml", __doc__ or "", default=default)
    values = {key: getattr(given, key) for key in kind.model_fields}
    return kind.model_construct(**values), given.out, given.resume  # pyright: ignore[reportAttributeAccessIssue]
