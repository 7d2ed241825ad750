"""The page about several methods: one table, gains by category, curves, and whether the reward was gamed.

May import: types, report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visfeedback.evaluation.contest_table import HEAD, between, table
from visfeedback.evaluation.words import about, duration, minus, percent
from visfeedback.report import lines
from visfeedback.report.blocks import Block, Command, Figure, Figures, Section, Table, Text
from visfeedback.report.page import Page

Methods = Mapping[str, Mapping[str, Any]]
REWARD, JUDGE = "trained reward, or the first witness", "independent judge"


def build(methods: Methods, summary: Mapping[str, Any]) -> Page:
    """``methods`` as ``contest.summarise`` gives them, ``summary`` around them with command, judge and prompts."""
    sections = [
        Section("All methods", (Table(HEAD, tuple(table(methods)), _caption(summary)),)),
        Section("By category", (_categories(methods),), "Points of difference to the base, tuned minus base."),
        Section("On the way", (Figures(curves(methods)),), _way(methods)),
        Section("Was the reward gamed?", (Figures((gaming(methods),)),), GAMING),
        Section("Each training", (_trainings(methods),)),
        Section("How it was measured", (Text(_notes(summary)),)),
        Section("Do it again", (Command(summary["command"]),)),
    ]
    return Page(_title(methods), sections, "comparison of methods", _sentence(methods, summary))


GAMING = (
    "Further right is further from the base model. Where the trained reward rises while the judge stays or falls, the "
    "method has learned what the reward likes and not what the prompt asks for."
)


def _title(methods: Methods) -> str:
    sure = [name for name, found in methods.items() if _sure(found)]
    if len(methods) == 1:
        return f"{next(iter(methods))}: {'a sure' if sure else 'no sure'} improvement"
    return f"{len(sure) or 'None'} of {len(methods)} methods surely improve{'' if len(sure) > 1 else 's'} the model"


def _sure(found: Mapping[str, Any]) -> bool:
    """Whether another training would gain, too; the interval of a single one is over its prompts and cannot say."""
    return len(found["seeds"]) > 1 and bool(found["delta_ci95"]) and found["delta_ci95"][0] > 0


def _sentence(methods: Methods, summary: Mapping[str, Any]) -> str:
    seeds = sorted({seed for found in methods.values() for seed in found["seeds"]})
    time = sum(found["seconds"] * len(found["seeds"]) for found in methods.values())
    return (
        f"Seeds {', '.join(map(str, seeds))}; each run was judged on the same {summary['n_prompts']} prompts x "
        f"{summary['images_per_prompt']} images. Training took {duration(time)} together.{_single(methods)}"
    )


def _single(methods: Methods) -> str:
    """Whose improvement cannot be sure."""
    names = [name for name, found in methods.items() if len(found["seeds"]) == 1]
    if not names:
        return ""
    return f" One seed says nothing of another training, so no improvement is sure of {', '.join(names)}."


def _caption(summary: Mapping[str, Any]) -> str:
    return (
        f"Judge: {summary['judge']}. Fully right is the equal-weight mean over categories. Intervals are 95%, over "
        "prompts and seeds; with one seed over prompts alone. Images drawn and seconds: mean of a training, drawing "
        "and labelling included."
    )


def _categories(methods: Methods) -> Table:
    kinds = list(dict.fromkeys(kind for found in methods.values() for kind in found["delta_per_category"]))
    rows = [
        (name, *(_gain(found["delta_per_category"].get(kind)) for kind in kinds)) for name, found in methods.items()
    ]
    return Table(("Method", *(kind.replace("_", " ") for kind in kinds)), tuple(rows), "In brackets: 95% interval.")


def _gain(entry: Mapping[str, Any] | None) -> str:
    return minus(f"{100 * entry['delta']:+.1f}{between(entry['ci95'], 100, '+.1f')}") if entry else ""


def curves(methods: Methods) -> tuple[Figure, ...]:
    """The share that is fully right, over images drawn and over seconds."""
    mean = {name: _mean_points(found) for name, found in methods.items()}
    starts = [100 * points[0]["accuracy"] for points in mean.values()]
    one_base = max(starts) - min(starts) < 1e-9  # methods may start from different models
    caption = "Mean over seeds. " + ("Dashed: the base model." if one_base else "A curve begins at its own base model.")
    figures = list[Figure]()
    for over, words in (("images", "images drawn"), ("seconds", "seconds")):
        series = {name: [(one[over], 100 * one["accuracy"]) for one in points] for name, points in mean.items()}
        figures.append(lines.lines(f"curve-{over}", f"Fully right over {words}", series, words, "% fully right",
                                   reference=starts[0] if one_base else None, caption=caption))  # fmt: skip
    return tuple(figures)


def _mean_points(found: Mapping[str, Any]) -> list[dict[str, float]]:
    """The points of all seeds, averaged one by one; as many as the shortest run has, and its end."""
    runs = [one["points"] for one in found["per_seed"].values()]
    count = min(len(points) for points in runs)
    rows = zip(*([*points[: count - 1], points[-1]] for points in runs), strict=True)
    return [{key: sum(point[key] for point in row) / len(row) for key in row[0]} for row in rows]


def _way(methods: Methods) -> str:
    if all(len(one["points"]) <= 2 for found in methods.values() for one in found["per_seed"].values()):
        return "Start and end; weights on the way were not kept."
    return "Weights kept on the way and at the end, judged on a part of the same held-out prompts."


def gaming(methods: Methods) -> Figure:
    """What the reward and the judge say over drift, a panel for each method."""
    groups = {
        name: {
            label: [[(point["drift"], point[key]) for point in one["points"]] for one in found["per_seed"].values()]
            for label, key in ((REWARD, "reward"), (JUDGE, "judge"))
        }
        for name, found in methods.items()
    }
    caption = (
        "Change since the base, in standard deviations between base images, on held-out prompts: the mean score of the "
        "trained reward, and the judge's mean soft score. A line is a training."
    )
    return lines.panels("gaming", "Trained reward and judge over drift", groups, "drift", "change", caption=caption)


def _trainings(methods: Methods) -> Block:
    rows = [
        (f"{name}, seed {seed}", percent(one["tuned"]),
         minus(f"{100 * one['delta']:+.1f}{between(one['delta_ci95'], 100, '+.1f')}"),
         "" if one["win_rate"] is None else percent(one["win_rate"]), f"{one['drift']:.2g}", f"{one['images']:,}",
         f"{one['seconds']:,.0f}")
        for name, found in methods.items()
        for seed, one in found["per_seed"].items()
    ]  # fmt: skip
    head = ("Training", "Fully right", "Points", "Win rate", "Drift", "Images drawn", "Seconds")
    return Table(head, tuple(rows), "Intervals resample prompts.")


def _notes(summary: Mapping[str, Any]) -> tuple[str, ...]:
    notes = [
        f"The judge is `{summary['judge']}`. {about(summary['judge'])}",
        "All runs drew the same prompts with the same image seeds, and share the pictures of the base model. A method "
        "that was taught by the judge itself (see `taught by`) is not judged independently: only its prompts are new.",
        "An interval of several seeds adds the variance over prompts and over seeds and uses Student's t; with three "
        "seeds it is wide where they disagree.",
        "Drift is the mean squared difference of what the two networks predict from the same noisy picture.",
    ]
    if summary["failed"]:
        notes.append("Not finished: " + ", ".join(f"{name} ({why})" for name, why in summary["failed"].items()) + ".")
    return tuple(notes)
