"""The curves of a training run, from the rows of its ``metrics.jsonl``.

To give a metric a title, a reference line or a word of explanation: add it to ``KNOWN``. May import: types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from visfeedback.report import plots
from visfeedback.report.blocks import Figures


class Known(NamedTuple):
    """How a metric is shown."""

    title: str
    reference: float | None = None
    caption: str = ""


KNOWN = {
    "loss": Known("Loss", math.log(2), "Dashed: ln 2, where no preference is learnt."),
    "implicit_accuracy": Known(
        "Pairs ranked right", 0.5, "How often the preferred image is the one made likelier. Dashed: chance."
    ),
    "holdout_implicit_accuracy": Known(
        "Held-out pairs ranked right", 0.5, "The same for prompts that were kept out of training. Dashed: chance."
    ),
    "drift": Known("Drift from the base model", None, "Mean squared difference of the two networks' predictions."),
    "margin": Known("Margin", 0.0, "Mean logit of the preferred image. Dashed: undecided."),
    "reward": Known("Reward", None, "Mean score of the images drawn for training."),
    "watched_reward": Known("Watched reward", None, "A second reward, which nothing was trained on."),
    "lr": Known("Learning rate"),
}
SHOWN = ("loss", "implicit_accuracy", "drift")


def training_curves(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] = SHOWN) -> Figures:
    """One plot for each of ``metrics`` that at least two rows have; rows carry ``step``."""
    figures = []
    for metric in metrics:
        points = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
        if len(points) > 1:
            steps, values = zip(*points, strict=True)
            known = KNOWN.get(metric, Known(metric.replace("_", " ").capitalize()))
            if metric == "loss" and not any("implicit_accuracy" in row for row in rows):
                known = Known(known.title)  # only a loss over pairs has a value that means chance
            figures.append(plots.curve(f"curve-{metric}", known.title, steps, values, reference=known.reference,
                                       caption=known.caption))  # fmt: skip
    return Figures(tuple(figures))
