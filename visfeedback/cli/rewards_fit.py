"""Train a reward from comparisons: a folder that scores as fit@FOLDER, with its measured accuracy and calibration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visfeedback.cli.console import Console, PartialFailure, parse
from visfeedback.plugins import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from visfeedback.rewards.fit import Comparison


def run(args: list[str], console: Console) -> dict[str, Any]:
    """``visfeedback rewards fit ARGS``."""
    from visfeedback.backbones.load import pick_device
    from visfeedback.rewards import fit

    class RewardsFit(fit.Settings):
        """Which comparisons, what is fitted to them, and where it goes."""

        out: Path
        """folder for the reward; the same command goes on where it was interrupted"""
        store: str = ""
        """learn from a store's pairs, rankings and ratings: sqlite:///prefs.db or a PostgreSQL URL"""
        pairs: str = ""
        """learn from a pairs file (.jsonl, .csv, .parquet): prompt, image_a, image_b, label"""
        criterion: str | None = None
        """with --store: only judgements of this criterion"""
        device: str = "auto"
        """auto, cpu, cuda, cuda:1, mps"""

    settings = parse(RewardsFit, args, prog="visfeedback rewards fit", description=__doc__ or "")
    comparisons, left_out = _comparisons(settings.store, settings.pairs, settings.criterion)
    chosen = settings.model_dump(include=set(fit.Settings.model_fields)) | {"device": str(pick_device(settings.device))}
    knobs = fit.Settings.model_validate(chosen)
    command = f"visfeedback rewards fit {shlex.join(args)}"
    summary = fit.fit(comparisons, knobs, settings.out, _opened, console.progress, command)
    result = {**summary, "command": "rewards fit", "out": str(settings.out), "left_out": left_out | summary["left_out"]}
    _report(result, console)
    return result


def _comparisons(store: str, pairs: str, criterion: str | None) -> tuple[list[Comparison], dict[str, int]]:
    """From exactly one source, and what it holds that is no comparison."""
    from visfeedback.preferences.files import read_pairs
    from visfeedback.rewards import fit

    if bool(store) == bool(pairs):
        raise InputError("give one of --store sqlite:///prefs.db and --pairs FILE.jsonl to learn from")
    if pairs and criterion is not None:
        raise InputError("a pairs file has no criteria; leave --criterion out, or give --store")
    return (fit.from_rows(read_pairs(pairs)), {}) if pairs else _from_store(store, criterion)


def _from_store(url: str, criterion: str | None) -> tuple[list[Comparison], dict[str, int]]:
    """Judgements of the same two images are one comparison: its share their mean, its weight how many they are."""
    from visfeedback import store
    from visfeedback.preferences.pairs import pairs_from_feedback
    from visfeedback.rewards.fit import Comparison

    with store.open(url, create=False) as opened:
        samples = {sample.id: sample for sample in opened.samples()}
        prompts = {sample.prompt_id: sample.prompt for sample in samples.values()}
        found, dropped = pairs_from_feedback(opened.feedback(), criterion=criterion, ties="keep", weight="votes")
    known = [p for p in found if p.winner in samples and p.loser in samples and p.prompt_id in prompts]
    if len(known) < len(found):
        dropped["without images in the store"] = len(found) - len(known)
    comparisons = [
        Comparison(
            prompts[p.prompt_id], Path(samples[p.winner].path), Path(samples[p.loser].path), p.probability, p.weight
        )
        for p in known
    ]
    if not comparisons:
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(
            f"{url} holds no comparisons{f' (left out: {why})' if why else ''}; make some with: "
            f"visfeedback label --store {url} --judge J --images SRC"
        )
    return comparisons, dropped


def _opened(path: Path) -> Image:
    from visfeedback.store.images import decode, read

    return decode(read(path), path)


def _report(result: Mapping[str, Any], console: Console) -> None:
    found, base = result["accuracy"], result["base_accuracy"]
    if found is None:
        console.warn("the comparisons kept for measuring are all ties; there is no accuracy")
    else:
        comparisons = "1 comparison" if found["count"] == 1 else f"{found['count']} comparisons"
        console.info(
            f"picks the preferred image of {comparisons} of other prompts in {_percent(found)}, "
            f"{result['settings']['base']} alone in {_percent(base)}"
        )
    console.info(f"score with it: --reward fit@{result['out']}; the card is {result['out']}/card.md")
    for line in result["failed"]:
        console.warn(line)
    if result["failed"]:
        raise PartialFailure(
            f"{len(result['failed'])} images cannot be read, the rest is done; first: {result['failed'][0]}",
            result,
            result["failed"],
        )


def _percent(share: Mapping[str, float]) -> str:
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"
