"""A presentation as the browser gets it: words, and addresses of images that say nothing but the presentation's token.

What stays here: sample ids, names and paths, who made an image, which side is which, whether a question is a test or a
repeat.
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from visfeedback.store import Store
from visfeedback.store.desk import Refused
from visfeedback.store.tasks import Presentation, Task


class Subject(NamedTuple):
    prompt: str
    paths: dict[str, Path]
    """sample id -> image file in the store"""


class Questions:
    """Looks up what a task is about; the last ones are remembered, because tasks never change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._subject = lru_cache(maxsize=4096)(self._look_up)

    def _look_up(self, prompt_id: str, sample_ids: tuple[str, ...]) -> Subject:
        found = self._store.samples_of(sample_ids)
        samples = [found[prompt_id, name] for name in sample_ids if (prompt_id, name) in found]
        prompt = samples[0].prompt if samples else ""
        return Subject(prompt, {sample.id: Path(sample.path) for sample in samples if sample.path})

    def subject(self, task: Task) -> Subject:
        return self._subject(task.prompt_id, task.sample_ids)

    def picture(self, shown: Presentation, position: int) -> Path:
        """The file behind a position of a presentation. Raises Refused when there is none."""
        paths = self.subject(shown.task).paths
        if not 0 <= position < len(shown.shown) or shown.shown[position] not in paths:
            raise Refused("no such image in this question")
        return paths[shown.shown[position]]

    def page(self, shown: Presentation) -> dict[str, Any]:
        """What the Compare screen needs."""
        task = shown.task
        return {
            "token": shown.token, "kind": task.kind, "prompt": self.subject(task).prompt,
            "criteria": list(task.criteria), "scale": list(task.scale),
            "images": [f"image/{shown.token}/{position}" for position in range(len(task.sample_ids))],
            "seconds_left": max(0, round(shown.expires_at - time.time())),
        }  # fmt: skip
