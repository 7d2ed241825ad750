"""Score images with reward models: a table with a row for each image, prompt and reward; resumable, in one pass."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from visfeedback.cli.console import Console, PartialFailure, parse
from visfeedback.plugins import InputError
from visfeedback.scoring.settings import ScoreSettings

if TYPE_CHECKING:
    from visfeedback.scoring.page import Results
    from visfeedback.scoring.run import Done
    from visfeedback.scoring.summary import Summary
    from visfeedback.types.protocols import Reward

SHOWN = 3
"""Best and worst images shown for each reward."""
FEW = 4
"""Of more rewards only the very best and worst image are shown, so that the table of means stays on the screen."""
LINES = 50
"""Failed items with a line of their own on the screen; all are in the file."""


PAGES = (".html", ".htm")


class Score(ScoreSettings):
    """Which images, which prompts, which rewards, and where the scores go."""

    images: str
    """a folder, samples.jsonl, a parquet file with image bytes, or the word store"""
    reward: tuple[str, ...]
    """NAME[:VARIANT][@PATH_OR_HUB], several after one flag; `visfeedback rewards list` shows what there is"""
    out: Path
    """.parquet, .csv or .jsonl; scores that are in it already are kept and not computed again"""
    prompts: str = ""
    """a text, a .txt or .jsonl file, or shapes:heldout:64; the images' own prompts when left out"""
    pairing: Literal["paired", "one", "matrix"] | None = None
    """paired: each image with its own prompt; one: all with the same; matrix: all against all"""
    report: Path | None = None
    """page with histograms and galleries, .html"""
    store: str = ""
    """for --images store: sqlite:///prefs.db or a PostgreSQL URL"""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """precision of the networks"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


def run(args: list[str], console: Console) -> dict[str, Any]:
    flags = parse(Score, args, "visfeedback score", __doc__ or "")
    _check_report(flags)
    began = time.perf_counter()
    loaded, done, summary = score(flags, console)
    seconds = time.perf_counter() - began
    results = _results(flags, loaded, done, summary, f"visfeedback score {shlex.join(args)}")
    if flags.report is not None and os.environ.get("RANK", "0") == "0":
        _write_page(flags, results)
    answer = _answer(flags, results, done, seconds)
    _show(flags, results, done, seconds, console)
    if done.failed:
        lines = [_line(one) for one in done.failed]
        rest = "the rest is scored" if summary.rows else "nothing is scored"
        raise PartialFailure(f"{len(lines)} failed, {rest}: {flags.out}.failed.jsonl; first: {lines[0]}",
                             answer, lines)  # fmt: skip
    return answer


def _check_report(flags: Score) -> None:
    """Raises InputError for what would only show after the work, or spoil somebody's file."""
    if flags.report is None:
        return
    if flags.report.suffix.lower() not in PAGES:
        raise InputError(f"--report {flags.report} ends in {flags.report.suffix or 'nothing'}; expected .html")
    if flags.report.is_dir():
        raise InputError(
            f"--report {flags.report} is a folder; expected a file, for example {flags.report}/scores.html"
        )


def score(flags: Score, console: Console) -> tuple[list[Reward], Done, Summary]:
    """Everything but the report: the rewards, what happened, and what the table holds now."""
    from visfeedback import prompts, rewards
    from visfeedback.scoring import tables
    from visfeedback.scoring.engine import pick_device
    from visfeedback.scoring.run import Run
    from visfeedback.scoring.sources import open_source

    tables.check(flags.out)
    settings = ScoreSettings(**flags.model_dump(include=set(ScoreSettings.model_fields)))
    source = open_source(flags.images, settings, flags.store)
    repeated = flags.pairing == "paired"
    asked = [prompt.text for prompt in prompts.load(flags.prompts, repeated=repeated)] if flags.prompts else []
    device = pick_device(flags.device)
    loaded: list[Reward] = []
    for reference in flags.reward:
        with console.waiting(f"loading {reference}"):  # reading and hashing 30 GB of weights takes minutes
            loaded.append(rewards.load(reference, device, flags.dtype))
    launched = {"rank": int(os.environ.get("RANK", 0)), "processes": int(os.environ.get("WORLD_SIZE", 1))}
    running = Run(source, loaded, flags.out, asked, flags.pairing, settings, device, console.progress, **launched)
    done = running.go()
    return loaded, done, _summary(flags.out, loaded)


def _summary(out: Path, loaded: Sequence[Reward]) -> Summary:
    from visfeedback.scoring import tables
    from visfeedback.scoring.summary import Summary

    summary, names = Summary(), _labels(loaded)
    for table in tables.read(out):
        summary.add(table, names)
    return summary


def _labels(loaded: Sequence[Reward]) -> dict[tuple[str, ...], str]:
    from visfeedback.scoring.summary import labels

    return labels((one.name, one.origin.model, one.origin.checkpoint_sha256) for one in loaded)


def _results(flags: Score, loaded: Sequence[Reward], done: Done, summary: Summary, command: str) -> Results:
    from visfeedback.scoring.banks import notices
    from visfeedback.scoring.page import Results
    from visfeedback.scoring.work import identities

    names = list(_labels(loaded).values())
    notes = [*notices(loaded), *done.notes]
    return Results(
        summary, identities(loaded), names, dict(zip(names, map(_measures, flags.reward), strict=True)), command,
        str(flags.out), done.failed, notes, {name: one.range for name, one in zip(names, loaded, strict=True)},
    )  # fmt: skip


def _measures(reference: str) -> str:
    """The reward's half sentence from the catalogue."""
    from visfeedback import plugins

    about = getattr(plugins.load("rewards", reference.partition("@")[0].partition(":")[0]), "ABOUT", None)
    return about.measures if about is not None else ""


def _write_page(flags: Score, results: Results) -> None:
    from visfeedback.report.page import write_page
    from visfeedback.scoring import page
    from visfeedback.scoring.sources import open_source

    settings = ScoreSettings(**flags.model_dump(include=set(ScoreSettings.model_fields)))
    source = open_source(flags.images, settings, flags.store)
    assert flags.report is not None
    write_page(flags.report, page.build(results, source, flags.max_megapixels))


# what people and programs get


def _line(one: dict[str, Any]) -> str:
    """A failed item in one line."""
    where = f"{one['image']} ({one['reward']})" if one["reward"] else str(one["image"])
    return f"{where}: {one['error']}"


def _lines(failed: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each failed item; one for all when many fail for the same reason."""
    alike: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for one in failed:
        alike.setdefault((one["reward"], one["error"]), []).append(one)
    lines: list[str] = []
    for (reward, error), group in alike.items():
        if len(group) <= SHOWN:
            lines += [_line(one) for one in group]
        else:
            of = f" ({reward})" if reward else ""
            lines.append(f"{group[0]['image']} and {len(group) - 1} more{of}: {error}")
    return lines


def _answer(flags: Score, results: Results, done: Done, seconds: float) -> dict[str, Any]:
    summary = results.summary
    rewards = {
        label: {**summary.of(label, results.bounds[label]), "best": _ends(summary, label, range(SHOWN)),
                "worst": _ends(summary, label, range(-1, -SHOWN - 1, -1))}
        for label in results.seen
    }  # fmt: skip
    return {
        "command": "score", "out": str(flags.out), "rows": summary.rows, "images": len(summary.images),
        "distinct_images": done.images, "prompts": len(summary.prompts), "scored": done.scored, "seconds": seconds,
        "images_per_second": done.images / done.seconds, "rewards": rewards, "notes": results.notes,
        "failed_file": f"{flags.out}.failed.jsonl" if done.failed else None,
        "report": str(flags.report) if flags.report else None,
    }  # fmt: skip


def _ends(summary: Summary, label: str, places: range) -> list[dict[str, Any]]:
    return [{"image": one.image, "prompt": one.prompt, "score": one.score} for one in summary.ranked(label, places)]


def _show(flags: Score, results: Results, done: Done, seconds: float, console: Console) -> None:
    for note in done.notes:
        console.info(f"note: {note}")
    lines = _lines(done.failed)
    for line in lines[:LINES]:
        console.warn(line)
    if len(lines) > LINES:
        console.warn(f"{len(lines) - LINES} more in {flags.out}.failed.jsonl")
    _tables(results, console)
    console.info(
        f"{results.summary.rows} scores in {flags.out}, {done.scored} computed by this process; "
        f"{done.images / done.seconds:.3g} images/s, {seconds:.1f} s in all"
        + (f"; report: {flags.report}" if flags.report else "")
    )


def _tables(results: Results, console: Console) -> None:
    summary = results.summary
    rows, ends = [], []
    ends_shown = SHOWN if len(results.seen) <= FEW else 1
    for label in results.seen:
        one = summary.of(label, results.bounds[label])
        low, high = one["ci95"]  # type: ignore[misc]
        rows.append((label, one["n"], f"{one['mean']:.4g}", _between(low, high), f"{one['min']:.4g}",
                     f"{one['max']:.4g}"))  # fmt: skip
        best, worst = summary.ranked(label, range(ends_shown)), summary.ranked(label, range(-ends_shown, 0))
        named = [("best", one) for one in best] + [("worst", one) for one in worst if one not in best]
        ends += [(label, which, f"{one.score:.4g}", one.image, one.prompt or "") for which, one in named]
    if rows:
        head = ("reward", "scores", "mean", "95% interval", "least", "most")
        console.table("scores", head, rows)
        console.table("best and worst", ("reward", "", "score", "image", "prompt"), ends)


def _between(low: float, high: float) -> str:
    """An interval; of one image, or images of one prompt, nothing is known."""
    return f"{low:.4g} to {high:.4g}" if math.isfinite(low) and math.isfinite(high) else "one only"
