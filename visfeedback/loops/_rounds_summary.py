"""Numbers of a run of rounds, each with a 95% interval in which the prompt is the unit. May import: evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from visfeedback.evaluation.statistics import bootstrap
from visfeedback.loops._journal import Round

if TYPE_CHECKING:
    from visfeedback.loops.fabric_rounds import Settings

MEASURES = (
    "preference", "met", "best_so_far", "right", "from_target", "to_liked", "to_disliked", "diversity", "alike",
)  # fmt: skip


def summarise(rows: Sequence[Round], settings: Settings, prompts: int) -> dict[str, Any]:
    """``arms[arm][round][measure] = [value, low, high]``, and in the last round fabric minus each other arm."""
    arms = {arm: _arm(rows, arm, settings) for arm in ("fabric", "none", "best_of_n", "prompt_dropout")}
    arms = {arm: rounds for arm, rounds in arms.items() if rounds}
    last = settings.loop.rounds - 1
    gain = {
        arm: {name: _difference(rows, ("fabric", arm), name, last, settings) for name in MEASURES}
        for arm in arms
        if arm != "fabric" and "fabric" in arms
    }
    return {
        "user": settings.user.kind, "n_prompts": prompts, "rounds": settings.loop.rounds,
        "images_per_round": settings.loop.images, "seed": settings.loop.seed,
        "seconds_per_round": {arm: _seconds(rows, arm, settings.loop.rounds) for arm in settings.loop.arms},
        "passes_per_round": _passes(rows, settings.loop.rounds), "arms": arms, "gain_in_last_round": gain,
    }  # fmt: skip


def of_prompt(rows: Sequence[Round], arm: str, name: str, number: int, settings: Settings) -> dict[str, float]:
    """Prompt id -> the mean of a measure over the images of a round."""
    source = "none" if arm == "best_of_n" else arm
    found: dict[str, float] = {}
    for prompt_id in dict.fromkeys(row.prompt_id for row in rows):
        history = sorted((r for r in rows if (r.prompt_id, r.arm) == (prompt_id, source)), key=lambda r: r.round)
        value = _value([row for row in history if row.round <= number], arm, name, settings) if history else None
        if value is not None:
            found[prompt_id] = value
    return found


def best(preferences: Sequence[float], count: int) -> list[int]:
    """Places of the ``count`` most preferred images, the most preferred first."""
    return sorted(range(len(preferences)), key=lambda k: -preferences[k])[:count]


def _value(history: Sequence[Round], arm: str, name: str, settings: Settings) -> float | None:
    row, count = history[-1], settings.loop.images

    def shown(of: Round) -> list[int]:
        return best(of.preferences, count) if arm == "best_of_n" else list(range(len(of.files)))[:count]

    measures: dict[str, Callable[[], float | None]] = {
        "preference": lambda: _mean([row.preferences[k] for k in shown(row)]),
        "met": lambda: _mean([float(row.preferences[k] >= settings.user.met) for k in shown(row)]),
        "best_so_far": lambda: max(of.preferences[k] for of in history for k in shown(of)),
        "right": lambda: _mean([float(row.right[k]) for k in shown(row)]) if row.right else None,
    }
    if name in measures:
        return measures[name]()
    return row.picked.get(name) if arm == "best_of_n" and len(row.files) > count else getattr(row, name)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _arm(rows: Sequence[Round], arm: str, settings: Settings) -> list[dict[str, list[float] | None]]:
    rounds = []
    for number in range(settings.loop.rounds):
        values = {name: of_prompt(rows, arm, name, number, settings) for name in MEASURES}
        if values["preference"]:
            rounds.append({name: _estimate(found, settings) for name, found in values.items()})
    return rounds


def _difference(
    rows: Sequence[Round], arms: tuple[str, str], name: str, number: int, settings: Settings
) -> list[float] | None:
    """Paired by prompt: the first arm minus the second."""
    first, second = (of_prompt(rows, arm, name, number, settings) for arm in arms)
    return _estimate({key: first[key] - second[key] for key in first if key in second}, settings)


def _estimate(values: dict[str, float], settings: Settings) -> list[float] | None:
    if not values:
        return None
    found = bootstrap(list(values.values()), list(values), seed=settings.loop.seed)
    return [found.value, found.low, found.high]


def _seconds(rows: Sequence[Round], arm: str, rounds: int) -> list[float]:
    """Mean seconds of drawing a round of a prompt."""
    by_round = [[row.seconds for row in rows if (row.arm, row.round) == (arm, number)] for number in range(rounds)]
    return [_mean(seconds) if seconds else 0.0 for seconds in by_round]


def _passes(rows: Sequence[Round], rounds: int) -> list[float]:
    by_round = [[row.passes for row in rows if (row.arm, row.round) == ("fabric", number)] for number in range(rounds)]
    return [_mean(passes) if passes else 0.0 for passes in by_round]
