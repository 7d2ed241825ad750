"""Look into a store of preferences, check it, and move it between file formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from tyro.conf import Positional

from visfeedback.cli.console import Console, PartialFailure, parse
from visfeedback.plugins import InputError, nearest
from visfeedback.types.records import Frozen


class Look(Frozen):
    store: str
    """sqlite:///prefs.db or a PostgreSQL URL"""


class Stats(Look):
    resamples: int = Field(default=500, ge=0, le=100_000)
    """bootstrap resamples behind the intervals of the leaderboard"""
    seed: int = Field(default=0, ge=0)
    """of the resamples"""


class Import(Frozen):
    path: Positional[Path]
    """the file or folder to read"""
    store: str
    """sqlite:///prefs.db or a PostgreSQL URL"""
    format: str = "jsonl"
    """layout of the file: jsonl or parquet (ours, lossless), pairs, csv, pickapic, hpd, kto, folders, ..."""


class Export(Import):
    path: Positional[Path]
    """the file or folder to write"""
    annotators: Literal["auto", "keep", "pseudonyms"] = "auto"
    """people's names: auto keeps them in jsonl, parquet and pairs and hides them elsewhere"""
    salt: str = ""
    """key of the pseudonyms, for the same ones from several stores; left out: the store's own secret"""


def run(args: list[str], console: Console) -> dict[str, Any]:
    action, rest = (args[0], args[1:]) if args else ("", [])
    if action in ("-h", "--help"):
        console.info("usage: visfeedback store {" + ",".join(ACTIONS) + "} --store URL [--help]")
        raise SystemExit(0)
    if action not in ACTIONS:
        raise InputError(f"no action {action!r} for store{nearest(action, ACTIONS)}")
    return ACTIONS[action](rest, console)


def _stats(args: list[str], console: Console) -> dict[str, Any]:
    """Counts, choices, side bias, speed, agreement of people, and a leaderboard of models with intervals."""
    from visfeedback import store
    from visfeedback.preferences.leaderboard import overview

    settings = parse(Stats, args, prog="visfeedback store stats", description=_stats.__doc__ or "")
    with store.open(settings.store, create=False) as opened:
        result = {"command": "store stats", "store": settings.store} | opened.stats()
        judged = overview(opened.feedback(), dict(opened.sources()), resamples=settings.resamples, seed=settings.seed)
    console.table(f"store {settings.store}", ("what", "value"), [(k, _cell(v)) for k, v in list(result.items())[2:]])
    _show(judged, console)
    return result | judged


def _show(judged: dict[str, Any], console: Console) -> None:
    """The tables that have something in them."""
    people = judged["people"]["judges"]
    if people:
        columns = ("answers", "left", "median_seconds", "gold", "repeats", "flags")
        rows = [(name, *(_cell(one[column]) for column in columns)) for name, one in people.items()]
        console.table("judges", ("judge", "answers", "left", "median s", "gold right", "repeats same", "look at"), rows)
    agreement = judged["agreement"]
    if agreement["items"]:
        other = judged["agreement_without_ties"]
        rows = [(name, _cell(value), _cell(other[name])) for name, value in agreement.items()]
        console.table("agreement", ("what", "with ties", "decided answers only"), rows)
    if judged["leaderboard"]:
        rows = [
            (str(row["rank"]), row["model"], f"{row['elo']:.0f}", " to ".join(f"{x:.0f}" for x in row["elo_ci95"]),
             *(f"{row[name]:.4g}" for name in ("wins", "ties", "losses")))
            for row in judged["leaderboard"]
        ]  # fmt: skip
        console.table("models", ("rank", "model", "Elo", "95% interval", "wins", "ties", "losses"), rows)


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
    from visfeedback.store import transfer

    settings = parse(Import, args, prog="visfeedback store import", description=_import.__doc__ or "")
    transfer.layout(settings.format)
    if not settings.path.exists():
        raise InputError(f"no file {settings.path} to import")
    with store.open(settings.store) as opened:
        counts = transfer.import_file(opened, settings.path, settings.format)
    return _moved("import", settings, counts, console)


def _export(args: list[str], console: Console) -> dict[str, Any]:
    """Write the store to a file, and what was left out to PATH.export.json."""
    from visfeedback import store
    from visfeedback.store import transfer

    settings = parse(Export, args, prog="visfeedback store export", description=_export.__doc__ or "")
    transfer.layout(settings.format)
    with store.open(settings.store, create=False) as opened:
        counts = transfer.export_file(
            opened, settings.path, settings.format, annotators=settings.annotators, salt=settings.salt
        )
    return _moved("export", settings, counts, console)


def _moved(action: str, settings: Import, counts: dict[str, Any], console: Console) -> dict[str, Any]:
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
