"""What the Train tab shows of a run: how far it is, its curves, pictures before and after, and who wins.

Functions from a run's folder to HTML; nothing here changes anything. May import: report, its neighbours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from visfeedback import plugins
from visfeedback.app import board_html as html
from visfeedback.app.train_jobs import Job
from visfeedback.app.train_runs import TrainRun, drawn
from visfeedback.report.blocks import Card, Cards, Number, Numbers, Share, Shares, Track
from visfeedback.report.curves import SHOWN, training_curves
from visfeedback.report.grids import before_after, picture

POINTS = 400
"""rows a curve is drawn from: more are not seen and cost time"""
CURVES = (*SHOWN, "holdout_implicit_accuracy")
PAIRS_SHOWN = 8
TAGS: dict[float | None, str] = {1.0: "tuned wins", 0.0: "base wins", 0.5: "a tie"}
TONES = {"finished": "good", "failed": "bad"}


def progress(run: TrainRun, rows: list[dict[str, Any]]) -> str:
    """A sentence, a bar, and the last lines of what failed."""
    job, done, whole = run.train, int(rows[-1]["step"]) if rows else 0, run.steps
    state = job.state
    if state == "failed":
        return html.say(f"{run.name}: {job.error}", "bad") + html.code("\n".join(job.tail()) or "(no output)")
    said = {
        "running": "is learning" if rows else "is getting ready: encoding images and prompts",
        "stopping": "saves its state and stops",
        "stopped": "has stopped; Resume goes on from where it is",
        "finished": "has learned",
    }.get(state, state)
    label = f"{done} of {whole} steps{_left(rows, whole) if state == 'running' else ''}"
    return html.say(f"{run.name} {said}.", TONES.get(state, "plain")) + html.bar(done, whole, label)


def _left(rows: list[dict[str, Any]], whole: int) -> str:
    if not rows or not rows[-1].get("seconds"):
        return ""
    return f", about {duration((whole - rows[-1]['step']) * rows[-1]['seconds'] / rows[-1]['step'])} left"


def duration(seconds: float) -> str:
    """``95`` -> ``1 min 35 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def curves(rows: list[dict[str, Any]]) -> str:
    """Loss, pairs ranked right, drift."""
    figures = training_curves(thinned(rows), CURVES)
    return html.drawn(figures) if figures.items else ""


def thinned(rows: list[dict[str, Any]], points: int = POINTS) -> list[dict[str, Any]]:
    """At most about ``points`` rows, evenly; rows with rare measures, and the last, stay."""
    if len(rows) <= points:
        return rows
    every = -(-len(rows) // points)
    rare = {"drift", "holdout_implicit_accuracy"}
    return [row for i, row in enumerate(rows) if i % every == 0 or rare & row.keys() or i == len(rows) - 1]


def pictures(run: TrainRun) -> str:
    """The same prompt and the same noise, with the base model and with the adapter as it is now."""
    found = run.previews()
    last = max(found, default=0)
    if not found.get(0):
        return ""
    if not last:
        return html.drawn(Cards(tuple(_alone(found[0])), "Before", "What the base model draws for these prompts."))
    cards = []
    for prompt, path in found[0].items():
        base, tuned = html.opened(path), html.opened(found[last].get(prompt, Path()))
        if base and tuned:
            cards.append(before_after(prompt, base, tuned))
    note = "The same prompt and the same noise. A handful of pictures shows style, not success: compare below."
    return html.drawn(Cards(tuple(cards), f"Before and after {last} steps", note)) if cards else ""


def _alone(found: dict[str, Path]) -> list[Card]:
    drawn = [(prompt, html.opened(path)) for prompt, path in found.items()]
    return [
        Card(prompt, (picture(image, f"base model, {prompt!r}", "base"),))
        for prompt, image in drawn
        if image is not None
    ]


def loading_code(run: TrainRun, adapter: str = "adapter") -> str:
    """The lines that load the adapter into a stock pipeline."""
    world = plugins.split_reference(run.model)
    source = f'{world[0]}.model_folder("{world[1]}")' if world else json.dumps(run.model)
    imports = f"from visfeedback import {world[0]}\n" if world else ""
    return (
        f"from diffusers import DiffusionPipeline\n{imports}"
        f"pipe = DiffusionPipeline.from_pretrained({source})\n"
        f"pipe.load_lora_weights({json.dumps(adapter)})"
    )


# who wins


def verdict(folder: Path, learned: set[str]) -> str:
    """How a comparison goes, or what came out: sentence, numbers with intervals, pictures."""
    job, out = Job(folder), folder / "out"
    state = job.state
    if state in ("running", "stopping"):
        there, whole = drawn(folder)
        said = "all pictures are there; judging" if 0 < there == whole else f"{there:,} of {whole:,} pictures"
        said += "; loading the model" if not there else ""
        return html.say(
            "Base and tuned model are being compared on the same prompts with the same seeds ..."
        ) + html.bar(there, whole, said)
    if state == "failed":
        return html.say(f"The comparison failed: {job.error}", "bad") + html.code("\n".join(job.tail()))
    summary = job.answer if state == "finished" else {}
    if not summary:
        return html.say("The comparison was stopped. The same question goes on where it was.")
    return outcome(summary) + html.drawn(*_changes(summary), *_pairs(out)) + _seen_before(folder, learned)


def outcome(summary: dict[str, Any]) -> str:
    """The result in a sentence that claims no more than the interval allows, and the numbers behind it."""
    tone, sentence = headline(summary)
    return html.say(sentence, tone) + html.drawn(Numbers(tuple(_numbers(summary))))


def headline(summary: dict[str, Any]) -> tuple[str, str]:
    """(good, bad or plain; sentence)."""
    rate, interval = summary.get("win_rate"), summary.get("win_rate_ci95")
    count = f"{summary['n_prompts']} prompts, {summary['images_per_prompt']} images each"
    if rate is None or interval is None:
        delta, interval = summary.get("delta"), summary.get("delta_ci95")
        if delta is None or interval is None:
            return "plain", f"Too little to tell who wins ({count})."
        if interval[0] <= 0 <= interval[1]:
            return "plain", f"No clear difference in {summary['delta_of']} ({count})."
        return ("good", f"The tuned model wins by {summary['delta_of']} ({count}).") if delta > 0 else (
            "bad", f"The base model wins by {summary['delta_of']}: the adapter made it worse ({count})."
        )  # fmt: skip
    if interval[0] <= 0.5 <= interval[1]:
        return "plain", f"No clear winner: the tuned image wins {rate:.0%} of pairs, which may be chance ({count})."
    if rate > 0.5:
        return "good", f"The tuned model wins {rate:.0%} of pairs against its base ({count})."
    return "bad", f"The base model wins {1 - rate:.0%} of pairs: the adapter made it worse ({count})."


def _numbers(summary: dict[str, Any]) -> list[Number]:
    found: list[Number] = []
    if summary.get("win_rate") is not None:
        ends = summary.get("win_rate_ci95")
        track = Track.around(summary["win_rate"], ends[0], ends[1], 0.5) if ends else None
        note = f"judged by {summary['judge']}; 50% is a draw" if summary.get("judge") else "50% is a draw"
        found.append(Number("Win rate of the tuned model", f"{summary['win_rate']:.0%}", interval=_ends(ends, "%"),
                            note=note, track=track))  # fmt: skip
    for side in ("base", "tuned"):
        right = summary[side].get("accuracy")
        if right is not None:
            ends = summary[side].get("accuracy_ci95")
            found.append(Number(f"Fully right, {side}", f"{right:.0%}", interval=_ends(ends, "%")))
    if summary.get("delta_of") == "accuracy" and summary.get("delta_ci95"):
        low, high = (100 * end for end in summary["delta_ci95"])
        found.append(Number("Difference", f"{100 * summary['delta']:+.0f} points", note="same prompts, same seeds",
                            interval=f"95% interval {low:+.0f} to {high:+.0f}"))  # fmt: skip
    for name in summary["base"].get("rewards", {}):
        before, after = summary["base"]["rewards"][name], summary["tuned"]["rewards"].get(name)
        if after is not None:
            found.append(Number(f"Mean {name}", f"{after:.3g}", note=f"base model: {before:.3g}"))
    return found


def _ends(interval: list[float] | None, unit: str = "") -> str:
    if interval is None:
        return "one prompt has no interval"
    scale = 100 if unit == "%" else 1
    return f"95% interval {interval[0] * scale:.0f} to {interval[1] * scale:.0f}{unit}"


def _changes(summary: dict[str, Any]) -> list[Shares]:
    """What became of each picture, where a program can tell right from wrong."""
    tones: dict[str, Any] = {"mended": "good", "broken": "bad", "still right": "good", "still wrong": "bad"}
    changes = summary.get("changes") or {}
    strong = {"mended", "broken"}
    shares = tuple(Share(name, count, tones[name], name in strong) for name, count in changes.items())
    return [Shares(shares)] if shares else []


def _pairs(out: Path) -> list[Cards]:
    """Pairs of pictures: those that changed sides first, mended and broken in turn, so that neither is hidden."""
    try:
        lines = (out / "outcomes.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    cards = [card for row in _picked([json.loads(line) for line in lines]) if (card := _card(row, out)) is not None]
    note = "Picked by what changed, better and worse in turn; not by beauty."
    return [Cards(tuple(cards), "Same prompt, same seed", note)] if cards else []


def _picked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    better = [row for row in rows if (row.get("win") or 0) > 0.5]
    worse = [row for row in rows if row.get("win") is not None and row["win"] < 0.5]
    turns = [row for two in zip(better, worse, strict=False) for row in two]
    rest = better[len(worse) :] + worse[len(better) :]
    same = [row for row in rows if row.get("win") in (None, 0.5)]
    return (turns + rest + same)[:PAIRS_SHOWN]


def _card(row: dict[str, Any], out: Path) -> Card | None:
    images = [html.opened(out / row[side]["path"]) for side in ("base", "tuned")]
    if not all(images):
        return None
    base, tuned = images
    assert isinstance(base, Image.Image) and isinstance(tuned, Image.Image)
    tag = TAGS.get(row.get("win"), "")
    return before_after(row["prompt"], base, tuned, (_mark(row["base"]), _mark(row["tuned"])), tag)


def _mark(seen: dict[str, Any]) -> str:
    if seen.get("right") is None:
        return ""
    failed = ", ".join(name for name, holds in seen.get("aspects", {}).items() if not holds)
    return "right" if seen["right"] else f"wrong: {failed}" if failed else "wrong"


def _seen_before(folder: Path, learned: set[str]) -> str:
    """A comparison on prompts that were trained on says little."""
    try:
        texts = (folder / "prompts.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    known = sum(text in learned for text in texts)
    return html.say(f"{known} of these {len(texts)} prompts were trained on: new ones say more.") if known else ""
