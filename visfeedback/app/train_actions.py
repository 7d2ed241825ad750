"""What the buttons of the Train tab do, and what its parts show: functions of (context, values).

All that is known of a run stands in its folder, so nothing here remembers anything but what it has counted.
May import: the app's neighbours; gradio for updates of components.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from visfeedback import plugins
from visfeedback.app import board_html as html
from visfeedback.app import train_presets, train_runs, train_view
from visfeedback.app.board_wiring import FAST, SLOW
from visfeedback.app.context import Context
from visfeedback.app.train_jobs import Job
from visfeedback.app.train_pairs import EXPECT, Counter, Ready
from visfeedback.app.train_runs import Judging, TrainRun
from visfeedback.plugins import InputError

HELD_OUT = 256
"""prompts of a world that base and tuned are compared on: with two images each the interval is about 3 points wide on
each side, where what a few hundred answers teach can be seen"""
NO_RUN = "No run yet. A run goes on when this page is closed; it can be stopped, resumed and judged at any time."

Seen = dict[str, str]
"""part of the page -> what it was drawn from; a part is drawn again when that has changed"""


class Part(NamedTuple):
    """A part of the page: what it depends on, and how it is drawn."""

    depends: str
    draw: Callable[[], Any]


# what there is


def ready(context: Context) -> Ready:
    """Pairs that can be learned from."""
    counter = context.extras.setdefault("train pairs", Counter(context.store))
    return counter()


def model(context: Context) -> str:
    """The model that learns: the one that was named, else the one that drew most of the images."""
    if context.model:
        return context.model
    if "train model" not in context.extras:
        drew = Tally(maker.partition("+")[0] for _, maker in context.store.sources())
        drew.pop("", None)
        if not drew:
            raise InputError("which model shall learn? start with: visfeedback collect --model shapes:sd --store URL")
        context.extras["train model"] = drew.most_common(1)[0][0]
    return context.extras["train model"]


def readiness(context: Context) -> str:
    """What there is to learn from, or the one thing that is missing."""
    try:
        found, base = ready(context), model(context)
        train_presets.preset_for(base)
    except InputError as error:
        return html.page(html.say(str(error), "bad"))
    tone = "good" if found.pairs >= min(EXPECT) else "plain"
    return html.page(html.say(found.missing) if found.missing else html.say(f"{base}: {found.sentence}", tone))


def suggestions(context: Context) -> dict[str, Any]:
    """Values of the fields before anybody changes them."""
    try:
        base = model(context)
        numbers = train_presets.defaults(base)
    except InputError:
        base, numbers = "", train_presets.Knobs(name="x").model_dump()
    world = plugins.split_reference(base)
    return {
        "name": train_runs.free_name(context.runs), "steps": numbers["steps"], "beta": numbers["beta"],
        "rank": numbers["rank"], "prompts": f"{world[0]}:heldout:{HELD_OUT}" if world else "",
        "rewards": "" if world else "pickscore",
    }  # fmt: skip


# what the buttons do; each returns a sentence


def start(context: Context, name: str, steps: Any, beta: Any, rank: Any) -> str:
    found = ready(context)
    if found.missing:
        raise InputError(found.missing)
    chosen = train_presets.knobs(name, steps, beta, rank)
    train_runs.begin(context.runs, model(context), context.url, chosen, found.pairs, found.prompts)
    return f"{chosen.name} learns from {found.pairs} pairs."


def stop(context: Context, name: str) -> str:
    """Training, or a comparison, whichever runs."""
    run = train_runs.find(context.runs, name)
    running = [job for job in (run.train, *map(Job, run.judgings())) if job.running]
    for job in running:
        job.stop()
    return "Stopping; its state is saved." if running else f"{name} is not running."


def resume(context: Context, name: str) -> str:
    train_runs.go_on(context.runs, name, context.url)
    return f"{name} goes on."


def compare(context: Context, name: str, prompts: str, per_prompt: Any, rewards: str) -> str:
    if not isinstance(per_prompt, int | float) or not 1 <= per_prompt <= 16:
        raise InputError(f"images of a prompt = {per_prompt}; expected 1 to 16")
    asked = Judging(prompts=str(prompts), per_prompt=int(per_prompt), rewards=str(rewards or ""))
    train_runs.compare(context.runs, name, asked)
    return "Drawing with base and tuned model, the same prompts and seeds."


def blind(context: Context, name: str) -> str:
    """From now on people compare images of the tuned model with the others, without knowing it."""
    run = train_runs.find(context.runs, name)
    if context.generator is None:
        raise InputError("nothing is drawn live here; start with: visfeedback collect --model shapes:sd --store URL")
    if run.adapter is None:
        raise InputError(f"{name} has no adapter yet; wait until its training has ended")
    context.generator.add_candidate(str(run.adapter))
    return f"{name} takes part in Compare from now on; Leaderboard says who wins."


# what is shown


def names(context: Context) -> list[str]:
    """Runs, newest first."""
    return [run.name for run in train_runs.runs(context.runs)]


def parts(context: Context, run: TrainRun) -> dict[str, Part]:
    """Everything that is shown of a run."""
    state, judged = run.train.state, next(iter(run.judgings()), None)
    job = Job(judged) if judged else None
    written = _size(run.out / "metrics.jsonl")
    previews = sorted(path.name for path in (run.out / "samples").glob("step-*") if (path / "prompts.json").is_file())
    judging = f"{judged and judged.name} {job and job.state} {judged and train_runs.drawn(judged)}"
    name, done = run.name, run.adapter is not None and state == "finished"
    return {
        "progress": Part(f"{name} {state} {written}", lambda: html.page(train_view.progress(run, run.metrics()))),
        "curves": Part(f"{name} {written}", lambda: html.page(train_view.curves(run.metrics()))),
        "pictures": Part(f"{name} {previews}", lambda: html.page(train_view.pictures(run))),
        "verdict": Part(
            f"{name} {judging}",
            lambda: html.page(train_view.verdict(judged, run.learned_prompts()) if judged else ""),
        ),
        "code": Part(f"{name} {done}", lambda: gr.update(value=train_view.loading_code(run), visible=done)),
        "download": Part(f"{name} {done}", lambda: _download(run, context.folder / "exports", done)),
        "stop": Part(f"{_running(run)}", lambda: gr.update(interactive=_running(run))),
        "resume": Part(state, lambda: gr.update(interactive=state in ("stopped", "failed"))),
        "compare": Part(f"{done} {_running(run)}", lambda: gr.update(interactive=done and not _running(run))),
        "blind": Part(f"{done}", lambda: gr.update(interactive=done, visible=context.generator is not None)),
    }


def nothing(context: Context) -> dict[str, Part]:
    """The same parts before there is a run."""
    empty = {key: Part("none", lambda: "") for key in ("curves", "pictures", "verdict")}
    empty["progress"] = Part("none", lambda: html.page(html.say(NO_RUN)))
    hidden = {key: Part("none", lambda: gr.update(visible=False)) for key in ("code", "download")}
    off = {key: Part("none", lambda: gr.update(interactive=False)) for key in ("stop", "resume", "compare")}
    shown = context.generator is not None
    return {**empty, **hidden, **off, "blind": Part("none", lambda: gr.update(interactive=False, visible=shown))}


def look(context: Context, name: str | None, seen: Seen) -> tuple[dict[str, Any], Seen]:
    """Values of the parts that have changed since ``seen``, and what is seen now."""
    found = parts(context, train_runs.find(context.runs, name)) if name else nothing(context)
    changed = {key: part.draw() for key, part in found.items() if seen.get(key) != part.depends}
    return changed, {key: part.depends for key, part in found.items()}


def pace(context: Context) -> float:
    """Seconds until the next look: short while something runs."""
    return FAST if train_runs.busy(context.runs) else SLOW


def _running(run: TrainRun) -> bool:
    return run.train.running or any(Job(path).running for path in run.judgings())


def _download(run: TrainRun, folder: Path, done: bool) -> Any:
    return gr.update(value=str(run.archive(folder)), visible=True) if done else gr.update(value=None, visible=False)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
