"""What a finished run cost, and where its weights are on the way: read from its folder, wherever that stands now.

Folders of `visfeedback train`, and of the loops whose stages train: lee_rwr, dreamsync, human_d3po. To add a loop: a
reader in ``LOOPS``. Paths come out relative to the folder. May import: types.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.types.records import Frozen


class Stop(Frozen):
    """A place on the way where the weights were kept."""

    name: str
    """`step-40`, `round-2`"""
    step: int
    """optimizer steps so far"""
    images: int
    """drawn so far to learn from"""
    seconds: float
    """of drawing, asking and learning so far"""
    weights: str
    """an adapter folder, or the .safetensors of a checkpoint"""


class Ledger(Frozen):
    """A finished run."""

    model: str
    dtype: str
    reward: str
    """reference of the trained reward; empty where people or programs compared"""
    taught_by: str
    """who said what is good, for people"""
    adapter: str
    stops: tuple[Stop, ...]
    """at least one; the last is the end, whose weights are `adapter`'s"""

    @property
    def images(self) -> int:
        return self.stops[-1].images

    @property
    def seconds(self) -> float:
        return self.stops[-1].seconds


def read_ledger(folder: Path) -> Ledger:
    """Raises InputError when the folder holds no finished run of a kind that is known here."""
    config = folder / "config.toml"
    if not config.is_file() or not (folder / "summary.json").is_file():
        raise InputError(f"{folder} holds no finished run (config.toml, summary.json); go on with it, or train one")
    table = tomllib.loads(config.read_text(encoding="utf-8"))
    name = table.get("loop", {}).get("name", "")
    if name and name not in LOOPS:
        raise InputError(f"{folder} was made by the loop {name!r}; expected train or one of {', '.join(LOOPS)}")
    return LOOPS[name](folder, table) if name else _train(folder, table)


def _train(folder: Path, table: dict[str, Any]) -> Ledger:
    reward = table["reward"]["name"]
    taught = reward or ("stored answers" if table["data"]["store"] or table["data"]["paths"] else "a file")
    return _ledger(table, reward, taught, "adapter", _stops(folder))


def _lee_rwr(folder: Path, table: dict[str, Any]) -> Ledger:
    stages = _stages(folder)
    before = sum(row["seconds"] for name, row in stages.items() if name not in ("train", "evaluate"))
    stops = [
        stop.model_copy(update={"images": stages["draw"]["facts"]["images"], "seconds": before + stop.seconds,
                                "weights": f"run/{stop.weights}"})
        for stop in _stops(folder / "run")
    ]  # fmt: skip
    return _ledger(table, f"fit@{folder / 'reward'}", f"labels of {table['label']['judge']}", "run/adapter", stops)


def _dreamsync(folder: Path, table: dict[str, Any]) -> Ledger:
    stages, stops = _stages(folder), list[Stop]()
    images, steps, seconds = 0, 0, 0.0
    for number in range(1, table["loop"]["rounds"] + 1):
        name = f"round-{number}"
        seconds += sum(stages[f"{name}/{stage}"]["seconds"] for stage in ("draw", "judge", "train"))
        images += stages[f"{name}/draw"]["facts"]["images"]
        steps += stages[f"{name}/train"]["facts"]["steps"]
        stops.append(Stop(name=name, step=steps, images=images, seconds=seconds, weights=f"{name}/run/adapter"))
    judges = f"{table['filter']['faithful']} and {table['filter']['beautiful']}"
    return _ledger(table, table["filter"]["beautiful"], judges, stops[-1].weights, stops)


def _human_d3po(folder: Path, table: dict[str, Any]) -> Ledger:
    """A round in which nobody preferred anything cost its images and left no weights."""
    stops, images, seconds, steps = list[Stop](), 0, 0.0, 0
    for row in _summary(folder)["per_round"]:
        images, seconds, name = images + row["images"], seconds + row["seconds"], f"round-{row['round']}"
        if row["learned"]:
            steps += table["optim"]["steps"]
            stops.append(Stop(name=name, step=steps, images=images, seconds=seconds, weights=f"{name}/train/adapter"))
    if not stops:
        raise InputError(f"{folder} learned in none of its rounds, so there is nothing to judge")
    return _ledger(table, "", table["ask"]["judge"] or "people", stops[-1].weights, stops)


LOOPS: dict[str, Callable[[Path, dict[str, Any]], Ledger]] = {
    "lee_rwr": _lee_rwr, "dreamsync": _dreamsync, "human_d3po": _human_d3po,
}  # fmt: skip


def _ledger(table: dict[str, Any], reward: str, taught: str, adapter: str, stops: list[Stop]) -> Ledger:
    model = table["model"]
    return Ledger(
        model=model["id"], dtype=model["dtype"], reward=reward, taught_by=taught, adapter=adapter, stops=tuple(stops)
    )


def _stops(folder: Path) -> list[Stop]:
    """Checkpoints of a run folder, and its end, whatever checkpoints are left."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = _summary(folder)["steps"]
    kept = {int(path.name[5:]): path for path in (folder / "checkpoints").glob("step-*") if path.name[5:].isdigit()}
    return [
        *(_stop(rows, step, _checkpoint(kept[step]).relative_to(folder)) for step in sorted(kept) if step < last),
        _stop(rows, last, Path("adapter")),
    ]


def _stop(rows: list[dict[str, Any]], step: int, weights: Path) -> Stop:
    """What the newest row of metrics at this step says; the first one for a step before it."""
    row = next((row for row in reversed(rows) if row["step"] <= step), rows[0])
    return Stop(name=f"step-{step}", step=step, images=int(row.get("images_made") or 0), seconds=row["seconds"],
                weights=weights.as_posix())  # fmt: skip


def _checkpoint(folder: Path) -> Path:
    """The running average where there is one, for that is what the adapter of a run holds."""
    average = folder / "ema.safetensors"
    return average if average.is_file() else folder / "adapter.safetensors"


def _stages(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "stages.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
