"""Look into a store of preferences, check it, and move it between file formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from visfeedback.cli.console import Console, PartialFailure, parse
from visfeedback.plugins import InputError, load, names, nearest
from visfeedback.types.records import Frozen

if TYPE_CHECKING:
    from types import ModuleType


class Look(Frozen):
    store: str
    """sqlite:///prefs.db or a PostgreSQL URL"""


class Move(Frozen):
    path: Positional[Path]
    """the file to read or write"""
    store: str
    """sqlite:///prefs.db or a PostgreSQL URL"""
    format: str = "jsonl"
    """layout of the file: jsonl (ours, lossless) or pairs"""


def run(args: list[str], console: Console) -> dict[str, Any]:
    action, rest = (args[0], args[1:]) if args else ("", [])
    if action in ("-h", "--help"):
        console.info("usage: visfeedback store {" + ",".join(ACTIONS) + "} --store URL [--help]")
        raise SystemExit(0)
    if action not in ACTIONS:
        raise InputError(f"no action {action!r} for store{nearest(action, ACTIONS)}")
    return ACTIONS[action](rest, console)


def _stats(args: list[str], console: Console) -> dict[str, Any]:
    """Counts, choices, side bias and speed."""
    from visfeedback import store

    settings = parse(Look, args, prog="visfeedback store stats", description=_stats.__doc__ or "")
    with store.open(settings.store, create=False) as opened:
        result = {"command": "store stats", "store": settings.store} | opened.stats()
    console.table(f"store {settings.store}", ("what", "value"), [(k, _cell(v)) for k, v in list(result.items())[2:]])
    return result


def _verify(args: list[str], console: Console) -> dict[str, Any]:
    """Read everything once and list what is missing or damaged."""
    from visfeedback import store

    settings = parse(Look, args, prog="visfeedback store verify", description=_verify.__doc__ or "")
    with store.open(settings.store, create=False) as opened:
        problems = opened.verify()
    result = {"command": "store verify", "store": settings.store, "problems": problems}
    for problem in problems:
        console.warn(problem)
    if problems:
        raise PartialFailure(f"{len(problems)} problems in {settings.store}; first: {problems[0]}", result, problems)
    console.info(f"{settings.store} is whole")
    return result


def _import(args: list[str], console: Console) -> dict[str, Any]:
    """Add what a file holds to the store; reading it again adds nothing."""
    from visfeedback import store

    settings = parse(Move, args, prog="visfeedback store import", description=_import.__doc__ or "")
    layout = _format(settings.format)
    if not settings.path.exists():
        raise InputError(f"no file {settings.path} to import")
    with store.open(settings.store) as opened:
        return _moved("import", settings, layout.read(settings.path, opened), console)


def _export(args: list[str], console: Console) -> dict[str, Any]:
    """Write the store to a file, with its images in a folder beside it."""
    from visfeedback import store

    settings = parse(Move, args, prog="visfeedback store export", description=_export.__doc__ or "")
    layout = _format(settings.format)
    with store.open(settings.store, create=False) as opened:
        return _moved("export", settings, layout.write(opened, settings.path), console)


def _format(name: str) -> ModuleType:
    if "." not in name and name not in names("store.formats"):
        raise InputError(f"no format {name!r}{nearest(name, names('store.formats'))}")
    return load("store.formats", name)


def _moved(action: str, settings: Move, counts: dict[str, Any], console: Console) -> dict[str, Any]:
    words = ", ".join(f"{name}: {_cell(value)}" for name, value in counts.items() if value != {})
    console.info(f"{action} {settings.path}: {words}")
    return {
        "command": f"store {action}",
        "store": settings.store,
        "path": str(settings.path),
        "format": settings.format,
    } | counts


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return " to ".join(_cell(item) for item in value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else str(value)


ACTIONS: dict[str, Callable[[list[str], Console], dict[str, Any]]] = {
    "stats": _stats,
    "verify": _verify,
    "import": _import,
    "export": _export,
}
