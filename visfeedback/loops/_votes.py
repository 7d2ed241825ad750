"""Questions about groups of images put to people, and the wait for their answers.

People answer in the collection app, or with `visfeedback label`; a simulated person answers at once. Both leave their
answers in the store, which is all that the next stage reads. May import everything but app and cli.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from visfeedback import feedback
from visfeedback.feedback import queue
from visfeedback.feedback.plan import Plan, tasks
from visfeedback.plugins import InputError
from visfeedback.preferences.pairs import pairs_from_feedback
from visfeedback.store.core import Store
from visfeedback.store.desk import Desk
from visfeedback.types.addresses import without_passwords
from visfeedback.types.records import Frozen, Prompt, Sample

CHUNK = 64
"""answers of a simulated person that are written at once"""


class Asking(Frozen):
    """Who is asked, and how much."""

    judge: str = ""
    """empty: people, in the app or with `visfeedback label`; `simulated:shapes` answers by itself"""
    seed: int = Field(default=0, ge=0)
    """which simulated person it is"""
    noise: float | None = Field(default=None, ge=0, le=1)
    """simulated: probability of a slip"""
    tie_band: float | None = Field(default=None, ge=0)
    """simulated: images closer than this are a tie"""
    side_bias: float | None = None
    """simulated: what the left image gets for nothing"""
    tastes: dict[str, float] | None = None
    """simulated: what the person likes that no prompt says, for example { dark = 1.0 }"""
    pairs: int = Field(default=0, ge=0)
    """pairs of each prompt's images that are asked; 0 = all K(K-1)/2"""
    criterion: str = "overall"
    """what is judged"""
    answered: float = Field(default=1.0, gt=0, le=1)
    """share of the pairs whose answers are waited for"""
    patience: float = Field(default=0.0, ge=0)
    """seconds to wait for people in one go; then the program ends, and goes on with --resume"""
    poll: float = Field(default=5.0, gt=0)
    """seconds between two looks into the store"""


def ask(
    store: Store, samples: Sequence[Sample], folder: Path, asking: Asking, seed: int, advance: Callable[[int], None]
) -> dict[str, int]:
    """Put the questions, wait for the answers, and count them. Raises InputError when people need more time."""
    store.add_samples(samples, folder)
    questions = _questions(samples, asking, seed)
    if asking.judge:
        _simulate(store, questions, folder, asking, advance)
    else:
        Desk(store).add(tasks(questions, Plan(criteria=(asking.criterion,), repeats=0.0, seed=seed)))
        _wait(store, questions, asking, advance)
    return answers(store, questions, asking.criterion)


def person(asking: Asking) -> Any:
    """The simulated one. Raises InputError when there is none of that name."""
    knobs = asking.model_dump(include={"seed", "noise", "tie_band", "side_bias", "tastes"}, exclude_none=True)
    return feedback.load(asking.judge, **knobs)


def _questions(samples: Sequence[Sample], asking: Asking, seed: int) -> list[queue.Pair]:
    groups = len({sample.prompt_id for sample in samples})
    return queue.pairs(samples, "random" if asking.pairs else "all", asking.pairs * groups or None, seed)


def _simulate(
    store: Store, questions: Sequence[queue.Pair], folder: Path, asking: Asking, advance: Callable[[int], None]
) -> None:
    judge = person(asking)
    done = {frozenset(record.sample_ids) for record in store.feedback(judge=judge.name) if record.kind == "pair"}
    left = [pair for pair in questions if frozenset((pair[0].id, pair[1].id)) not in done]
    advance(len(questions) - len(left))
    for start in range(0, len(left), CHUNK):
        part = left[start : start + CHUNK]
        store.add_feedback(
            [_answer(judge, pair, folder).model_copy(update={"criterion": asking.criterion}) for pair in part]
        )
        advance(len(part))


def _answer(judge: Any, pair: queue.Pair, folder: Path) -> Any:
    images = [Image.open(folder / sample.path).convert("RGB") for sample in pair]
    prompt = Prompt.of(pair[0].prompt, pair[0].negative, category=pair[0].category)
    return judge.compare(prompt, pair, images)


def _wait(store: Store, questions: Sequence[queue.Pair], asking: Asking, advance: Callable[[int], None]) -> None:
    """Until enough questions have an answer, as long as patience lasts."""
    wanted, seen = round(asking.answered * len(questions)), 0
    end = time.monotonic() + asking.patience
    while True:
        now = answers(store, questions, asking.criterion)["answered"]
        advance(now - seen)
        seen = now
        if now >= wanted:
            return
        if time.monotonic() >= end:
            address = without_passwords(store.url.render_as_string(hide_password=False))
            raise InputError(
                f"{now} of {wanted} answers are there; let people answer: visfeedback collect --store {address}, then "
                "go on with --resume (or wait longer: --ask.patience SECONDS)"
            )
        time.sleep(min(asking.poll, max(0.0, end - time.monotonic())))


def judged(store: Store, samples: Sequence[Sample], criterion: str) -> set[str]:
    """Ids of the images that somebody preferred to another one of their prompt, or rejected; ties say nothing."""
    prompt = {sample.id: sample.prompt_id for sample in samples}
    found, _ = pairs_from_feedback(store.feedback(), criterion=criterion)
    pairs = [(p.winner, p.loser) for p in found if p.winner in prompt and prompt[p.winner] == prompt.get(p.loser)]
    return {name for pair in pairs for name in pair}


def answers(store: Store, questions: Sequence[queue.Pair], criterion: str) -> dict[str, int]:
    """How many of the questions are answered, and how many of these without a preference, or skipped by all who saw
    them: whoever cannot tell has answered, too, and is not asked again."""
    said = list(store.feedback())
    found, _ = pairs_from_feedback(said, criterion=criterion, ties="keep")
    known: dict[frozenset[str], float | None] = {
        frozenset(r.sample_ids): None for r in said if r.choice in ("skip", "flag") and r.criterion == criterion
    }
    known |= {frozenset((p.winner, p.loser)): p.probability for p in found}
    asked = [known[key] for a, b in questions if (key := frozenset((a.id, b.id))) in known]
    return {
        "asked": len(questions), "answered": len(asked), "ties": sum(p == 0.5 for p in asked),
        "skipped": sum(p is None for p in asked),
    }  # fmt: skip
