"""How much there is to learn from: pairs that a training run would use, and what is missing.

Counts as `visfeedback train` does: ties, skips, flags, gold items and cancelled-out votes teach nothing.
May import: plugins, store, preferences.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from visfeedback.preferences.pairs import pairs_from_feedback
from visfeedback.store import Store

FEWEST = 8
"""pairs below which training is refused: a LoRA of thousands of numbers would learn these by heart"""
RANKING = "Four images in order hold six pairs: visfeedback collect --ask.kind ranking asks for that."
EXPECT = {
    200: f"Expect little of so few pairs: what they teach may not be told from chance. {RANKING}",
    1000: "Expect a small gain, which may not be told from chance yet; more answers help more than more steps. "
    + RANKING,
}
"""pairs below which the page says what to expect. On the small shapes model some 2,000 pairs and 600 steps gained 2 to
10 points, 54% to 59% of comparisons (five seeds of `visfeedback quickstart`). Collected in this app from a simulated
person, 225 rankings of four (872 pairs) gained 8 points (4 to 13), 450 (1,751 pairs) 8 (4 to 12): demos/README.md"""


@dataclass(frozen=True)
class Ready:
    """What the store holds for training."""

    pairs: int = 0
    prompts: int = 0
    answers: int = 0
    """standing feedback, whatever it says"""
    dropped: dict[str, int] = field(default_factory=dict)
    """what teaches nothing, by reason"""

    @property
    def missing(self) -> str:
        """One line on what is missing; empty when training may begin."""
        if self.pairs >= FEWEST:
            return ""
        short = FEWEST - self.pairs
        answers = f"{short} more pair{'s' if short > 1 else ''} with a clear winner"
        return (
            f"Not enough to learn from yet: {self.pairs} usable, at least {FEWEST} needed. Judge {answers} in Compare."
        )

    @property
    def sentence(self) -> str:
        """How much there is, and how much of what was said cannot be used."""
        parts = [f"{count} {reason}" for reason, count in self.dropped.items()]
        left_out = f" Left out: {', '.join(parts)}." if parts else ""
        told = f"{self.pairs:,} usable pairs over {self.prompts:,} prompts, from {self.answers:,} answers.{left_out}"
        return " ".join([told, *(words for limit, words in EXPECT.items() if self.pairs < limit)][:2])


class Counter:
    """Counts again only when something was said since; safe from several threads."""

    def __init__(self, store: Store, criterion: str = "overall") -> None:
        self.store, self.criterion = store, criterion
        self._lock = threading.Lock()
        self._seen, self._ready = -1, Ready()

    def __call__(self) -> Ready:
        with self._lock:
            now = self.store.feedback_count()
            if now != self._seen:
                self._ready, self._seen = count(self.store, self.criterion), now
            return self._ready


def count(store: Store, criterion: str = "overall") -> Ready:
    """One pass over the store."""
    answers = 0

    def seen():
        nonlocal answers
        for record in store.feedback():
            answers += 1
            yield record

    preferences, dropped = pairs_from_feedback(seen(), criterion=criterion)
    drawn = {sample.id for sample in store.samples()}
    usable = [one for one in preferences if one.winner in drawn and one.loser in drawn]
    if len(usable) < len(preferences):
        dropped["without images"] = len(preferences) - len(usable)
    return Ready(len(usable), len({one.prompt_id for one in usable}), answers, dropped)
