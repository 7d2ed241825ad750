"""The end of a run: adapter, card, report, and summary.json, which comes last and says that all is there.

May import: types.
"""

from __future__ import annotations

from typing import Any

from visfeedback.training.checkpoint import Position
from visfeedback.training.pages import TAIL, card, write_report
from visfeedback.training.run import read_metrics
from visfeedback.training.setup import Setup
from visfeedback.types.addresses import without_passwords
from visfeedback.types.files import write_atomic, write_json
from visfeedback.types.memory import peak_mib


def finish(setup: Setup, position: Position, command: str) -> dict[str, Any]:
    """Write what a finished run leaves and return its summary, in every process."""
    summary = summarize_run(setup, position, command)
    if setup.main:
        average = setup.stepper.average
        setup.backbone.save_adapter(setup.run.adapter, state=average.values if average else None)
        write_atomic(setup.run.card, card(setup, summary))
        write_report(setup, summary)
        write_json(setup.run.summary, summary)
    setup.accelerator.wait_for_everyone()
    setup.accelerator.end_training()
    return summary


def summarize_run(setup: Setup, position: Position, command: str) -> dict[str, Any]:
    """What summary.json says."""
    settings = setup.settings
    rows = read_metrics(setup.run.metrics) if setup.main else []
    stopped = {"stopped": position.stopped} if position.stopped else {}
    return {
        "command": without_passwords(command) or f"visfeedback train {setup.run.config} --out DIR",
        "seed": settings.engine.seed, "method": settings.method.model_dump(mode="json"), "model": settings.model.id,
        "steps": position.step, "seconds": round(position.seconds, 1), "peak_mib": peak_mib(), **stopped,
        "learned": setup.source.learned, **setup.source.summary(position.step),
        **last_values(rows), "measured_on": setup.source.measured_on(), "conventions": conventions(setup),
        "adapter": str(setup.run.adapter),
    }  # fmt: skip


def last_values(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the last rows, and the newest drift and held-out measures."""
    values: dict[str, float] = {}
    for name in ("loss", "implicit_accuracy", "reward", "watched_reward"):
        found = [row[name] for row in rows[-TAIL:] if row.get(name) is not None]
        values |= {name: round(sum(found) / len(found), 5)} if found else {}
    for name in ("drift", "holdout_loss", "holdout_implicit_accuracy"):
        found = [row[name] for row in rows if row.get(name) is not None]
        values |= {name: found[-1]} if found else {}
    return values


def conventions(setup: Setup) -> dict[str, float]:
    """The method's strength as other programs write it, if it knows."""
    known = getattr(setup.settings.method, "conventions", None)
    if known is None:
        return {}
    return known(tuple(setup.source.probe()[0].shape[1:]))
