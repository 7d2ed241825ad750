"""What rewards there are, whether one works, and training one of your own: `rewards list`, `check`, `fit`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from visfeedback.cli.console import Console, PartialFailure, parse
from visfeedback.plugins import InputError, load, names, nearest
from visfeedback.types.records import About, Frozen

if TYPE_CHECKING:
    from PIL.Image import Image

    from visfeedback.scoring.laws import Law


class List(Frozen):
    """`rewards list` has no flags of its own."""


class Check(Frozen):
    reward: Positional[str]
    """NAME[:VARIANT][@PATH_OR_HUB]"""
    images: Path | None = None
    """folder with the pictures whose scores were published (`rewards check NAME` says where they are)"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """precision of the network"""


def run(args: list[str], console: Console) -> dict[str, Any]:
    action, rest = (args[0], args[1:]) if args else ("", [])
    if action in ("-h", "--help"):
        sys.stdout.write("usage: visfeedback rewards {list,check,fit} [--help]\n")
        raise SystemExit(0)
    if not action:
        raise InputError("rewards does what? write visfeedback rewards list, check NAME, or fit")
    if action == "list":
        return _list(rest, console)
    if action == "check":
        return _check(rest, console)
    if action == "fit":
        from visfeedback.cli import rewards_fit

        return rewards_fit.run(rest, console)
    raise InputError(f"no action {action!r} for rewards{nearest(action, ('list', 'check', 'fit'))}")


# ------------------------------------------------------------------------------------------------------------- list


def _list(args: list[str], console: Console) -> dict[str, Any]:
    """What each reward measures, its range, how often it agrees with people, its licence, and what it still needs."""
    parse(List, args, "visfeedback rewards list", _list.__doc__ or "")
    found = [entry(name) for name in names("rewards") if hasattr(load("rewards", name), "ABOUT")]
    console.table("rewards", ("reward", "what it measures; its scores; what it needs here"), map(_measured, found))
    judged = [(e["name"], _percents(e["accuracy"]), e["accuracy_source"]) for e in found if e["accuracy"]]
    console.table("pairs ranked as people do, %", ("reward", "published accuracy", "source"), judged)
    console.table("weights", ("reward", "default weights and their size; licence; variants"), map(_weights, found))
    return {"command": "rewards list", "rewards": found}


def _measured(one: dict[str, Any]) -> tuple[str, str]:
    """Few columns, so that 80 letters show every name whole."""
    typical = f", typical {one['typical']}" if one["typical"] else ""
    return one["name"], f"{one['measures']}\nrange {one['range']}{typical}; {one['state']}"


def _weights(one: dict[str, Any]) -> tuple[str, str]:
    own = one["state"] if one["state"].startswith("write") else "nothing to fetch"
    where = " ".join(part for part in (one["hub"], _size(one["megabytes"])) if part) or own
    variants = f"\nvariants: {', '.join(one['variants'])}" if one["variants"] else ""
    return one["name"], f"{where}; licence: {one['licence']}{variants}"


def entry(name: str) -> dict[str, Any]:
    """A reward's line in the catalogue."""
    module = load("rewards", name)
    about: About = module.ABOUT
    return {
        "name": name,
        **about.model_dump(mode="json"),
        "range": bounds(module),
        **_here(about, getattr(module, "USAGE", "")),
    }


def bounds(module: ModuleType) -> str:
    """The range of scores: ``RANGE`` of the module, a pair or words, else ``range`` of the class that it loads."""
    found = getattr(module, "RANGE", None)
    own = (thing for thing in vars(module).values() if isinstance(thing, type) and thing.__module__ == module.__name__)
    ranges = {found} if found else {getattr(thing, "range", None) for thing in own if hasattr(thing, "combine")}
    known = [one for one in ranges if isinstance(one, tuple | str)]
    if len(known) != 1:
        return "by variant"
    if isinstance(known[0], str):
        return known[0]
    low, high = known[0]
    return "unbounded" if math.isinf(low) and math.isinf(high) else f"{_end(low)} to {_end(high)}"


def _end(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else "any"


def _here(about: About, usage: str) -> dict[str, Any]:
    """Whether it can be loaded at once, and what to do when not; ``usage`` of one that always needs a file or model."""
    missing = _missing_extra(about.extra)
    if missing:
        return {"installed": False, "state": f"pip install 'visfeedback[{about.extra}]'"}
    if usage:
        return {"installed": True, "state": f"write {usage}"}
    if not about.hub:
        return {"installed": True, "state": "ready"}
    if _in_cache(about.hub):
        return {"installed": True, "state": "weights here"}
    return {"installed": True, "state": "weights: @PATH or the hub"}


def _missing_extra(extra: str) -> bool:
    """False when the extra is there, or when this installation does not say what belongs to it."""
    from visfeedback.cli.doctor import examine_extras

    state = examine_extras().get(extra) if extra else None
    return state is not None and not state["installed"]


def _in_cache(hub: str) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE

    return (Path(HF_HUB_CACHE) / f"models--{hub.replace('/', '--')}" / "snapshots").is_dir()


def _percents(accuracy: dict[str, float]) -> str:
    return ", ".join(f"{benchmark} {percent:g}" for benchmark, percent in accuracy.items())


def _size(megabytes: float | None) -> str:
    return "" if megabytes is None else f"{megabytes:,.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


# ------------------------------------------------------------------------------------------------------------ check


def _check(args: list[str], console: Console) -> dict[str, Any]:
    """Load a reward and hold it against the laws that all rewards obey, and against scores that were published."""
    from visfeedback import rewards
    from visfeedback.scoring.engine import pick_device
    from visfeedback.scoring.laws import examine

    flags = parse(Check, args, "visfeedback rewards check", _check.__doc__ or "")
    with console.waiting(f"loading {flags.reward}"):
        reward = rewards.load(flags.reward, pick_device(flags.device), flags.dtype)
    with console.waiting(f"trying {flags.reward} on pictures made here"):
        laws = examine(reward)
    laws += _known(flags, reward, console)
    console.table(f"{flags.reward}, {reward.origin.model}", ("law", "holds", "found"),
                  [(law.name, "yes" if law.holds else "NO", law.found) for law in laws])  # fmt: skip
    broken = [law.name for law in laws if not law.holds]
    origin = reward.origin.model_dump(mode="json")
    result = {"command": "rewards check", "reward": flags.reward, "origin": origin, "laws": [vars(law) for law in laws]}
    if broken:
        raise PartialFailure(
            f"{flags.reward} breaks {len(broken)} of {len(laws)} laws; first: {broken[0]}", result, broken
        )
    console.info(f"{flags.reward} obeys all {len(laws)} laws")
    return result


def _known(flags: Check, reward: Any, console: Console) -> list[Law]:
    """Published scores, for whoever has the pictures and the published weights."""
    from visfeedback.scoring.laws import known_answers

    module = load("rewards", flags.reward.partition("@")[0].partition(":")[0])
    answers = getattr(module, "KNOWN_ANSWERS", ())
    if not answers:
        return []
    if flags.images is None:
        files = ", ".join(dict.fromkeys(one.file for one in answers))
        where = getattr(module, "KNOWN_PICTURES", "the reward's own repository")
        console.info(f"{len(answers)} scores were published for {files} in {where}; give their folder with --images")
        return []
    folder = flags.images
    return list(known_answers(reward, answers, module.KNOWN_TOLERANCE, lambda name: _open(folder / name)))


def _open(path: Path) -> Image:
    from visfeedback.scoring.decode import BadImage, decode

    if not path.is_file():
        raise InputError(f"no file {path}; --images is the folder with the published pictures")
    try:
        return decode(path.read_bytes(), 64)[0]
    except BadImage as error:
        raise InputError(f"{path}: {error}") from None
