"""Which pairs are looked at beside training, for drift and held-out accuracy: spread over the prompts, so that the
first few prompts of the data do not speak for all.

May import: types.
"""

from __future__ import annotations

from collections.abc import Sequence

from visfeedback.training.data import Pair
from visfeedback.training.settings import TrainSettings
from visfeedback.types.records import text_id

PROBE = 16
"""images on which the drift is measured"""
HELD_OUT = 64
"""held-out pairs that are looked at"""
HELD_OUT_DRAWS = 4
"""(noise, time) at which each of them is looked at: with one, accuracy is mostly chance"""


def spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most ``count`` pairs. Prompts take turns, in an order that follows from their texts alone; of a prompt's pairs
    those come first whose winner, then whose loser, has not been seen."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.prompt, []).append(pair)
    turns = [groups[prompt] for prompt in sorted(groups, key=lambda prompt: text_id("look", prompt))]
    picked, seen = list[Pair](), set[str]()
    while len(picked) < min(count, len(pairs)):
        for group in [group for group in turns if group][: count - len(picked)]:
            best = min(range(len(group)), key=lambda i: (group[i].winner in seen, group[i].loser in seen))
            picked.append(group.pop(best))
            seen |= {picked[-1].winner, picked[-1].loser}
    return picked


def probe(pairs: Sequence[Pair], batch_size: int) -> list[tuple[Pair, int]]:
    """(pair, draw) whose winners show the drift: as many as fit a training batch."""
    return [(pair, 0) for pair in spread(pairs, min(PROBE, 2 * batch_size))]


def held_out(pairs: Sequence[Pair]) -> list[tuple[Pair, int]]:
    """(pair, draw) that show loss and accuracy on held-out pairs, draws outermost."""
    picked = spread(pairs, HELD_OUT)
    return [(pair, draw) for draw in range(HELD_OUT_DRAWS) for pair in picked]


def drift_draws(items: Sequence[tuple[Pair, int]]) -> int:
    """(noise, time) for each image of the probe: fewer images get more."""
    return max(1, PROBE // len(items))


def times(settings: TrainSettings) -> int:
    """How often a whole run looks: every so many steps, and after the last one."""
    every, steps = settings.engine.drift_every, settings.optim.steps
    return steps // every + bool(steps % every) if every else 1


def looked_at(train: Sequence[Pair], held: Sequence[Pair], batch_size: int) -> dict[str, dict[str, int]]:
    """How much the measures rest on, for people and summary.json."""
    items = probe(train, batch_size)
    found = {"drift": {"images": len({pair.winner for pair, _ in items}), "prompts": _prompts(items),
                       "draws": drift_draws(items)}}  # fmt: skip
    if held:
        items = held_out(held)
        pairs = len(items) // HELD_OUT_DRAWS
        found["holdout"] = {"pairs": pairs, "prompts": _prompts(items), "draws": HELD_OUT_DRAWS}
    return found


def _prompts(items: Sequence[tuple[Pair, int]]) -> int:
    return len({pair.prompt for pair, _ in items})
