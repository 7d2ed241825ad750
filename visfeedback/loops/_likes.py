"""Who says of single images whether they are good: a verifier, a simulated person, or people whose answers are stored.

A like is 1, a dislike -1; both go into the program's store as feedback. May import: types, store, shapes, preferences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from visfeedback import store
from visfeedback.loops._folders import beside
from visfeedback.plugins import InputError, nearest, split_reference, world
from visfeedback.preferences.weights import labels_from_feedback
from visfeedback.rewards.fit import Labelled
from visfeedback.sampling.generate import derive_seed
from visfeedback.sampling.samples import open_image
from visfeedback.store.rows import prompt_of
from visfeedback.types.files import write_atomic
from visfeedback.types.protocols import Progress
from visfeedback.types.records import Feedback, Frozen, Prompt, Sample, text_id

BATCH = 64  # answers of one transaction
EMPTY = Image.new("RGB", (64, 64))


class LabelChoice(Frozen):
    """Who labels."""

    judge: str = "verifier:shapes"
    """verifier:shapes = good when everything the prompt says is there; simulated:shapes = a person, who slips and has
    tastes; store = people, whose likes and ratings are in `store`"""
    store: str = ""
    """with judge = store: its URL, sqlite:///prefs.db or PostgreSQL; else answers go to store.db in --out"""
    criterion: str = "overall"
    """which question's answers are read"""
    noise: float = Field(default=0.0, ge=0, le=0.5)
    """simulated: probability of a slip"""
    tastes: dict[str, float] = Field(default_factory=dict)
    """simulated: what the person likes that no prompt says, with weights, as { big = 0.5 }"""
    worth_from: float = 1.5
    """simulated: worth from which an image is good; 1 for everything right, plus a soft score in [0, 1], plus tastes"""
    good_from: float = 3.0
    """store: least rating that is good; likes and dislikes say it themselves"""


Likes = Callable[[Prompt, Image.Image, str], bool]
"""(prompt, image, the image's id) -> good"""


def invite(settings: LabelChoice, seed: int) -> tuple[str, Likes]:
    """The judge's name and answers. Raises InputError for an unknown one."""
    kind, _, place = settings.judge.partition(":")
    known = ("verifier:shapes", "simulated:shapes", "store")
    if kind not in ("verifier", "simulated") or split_reference(f"{place}:") is None:
        raise InputError(f"no judge {settings.judge!r} of single images{nearest(settings.judge, known)}")
    if kind == "verifier":
        verifier = world(place).verifier()
        return settings.judge, lambda prompt, image, name: verifier.verify(prompt.text, image).right
    person = import_module(f"{world(place).__name__}.simulated").Person(seed=seed, tastes=settings.tastes)

    def likes(prompt: Prompt, image: Image.Image, name: str) -> bool:
        slip = np.random.default_rng(derive_seed(seed, f"like {prompt.id} {name}", 0)).random() < settings.noise
        return (person.worth(prompt.text, image) >= settings.worth_from) != slip

    return f"{settings.judge}#{seed}", likes


def check_readable(prompts: Sequence[Prompt], likes: Likes) -> None:
    """Raises the judge's own InputError for a prompt without a reference answer, before anything is drawn."""
    for prompt in prompts:
        likes(prompt, EMPTY, "empty")


def label(
    url: str, samples: Sequence[Sample], root: Path, judge: tuple[str, Likes], criterion: str, progress: Progress
) -> int:
    """Ask about every image once and keep the answers; returns how many images are liked. Repeating is safe."""
    name, likes = judge
    with store.open(url) as opened, progress(f"asking {name}", len(samples)) as advance:
        opened.add_samples(samples, root)
        liked = 0
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            answers = [_answer(sample, likes, root, name, criterion) for sample in part]
            opened.add_feedback(answers)
            liked += sum(answer.values[0] > 0 for answer in answers)
            advance(len(part))
    return liked


def _answer(sample: Sample, likes: Likes, root: Path, judge: str, criterion: str) -> Feedback:
    """The same image and judge always give the same record, so that asking again adds nothing."""
    good = likes(prompt_of(sample), open_image(sample, root), sample.id)
    return Feedback(
        id=text_id("like", judge, criterion, sample.prompt_id, sample.id), kind="like", judge=judge,
        criterion=criterion, prompt_id=sample.prompt_id, sample_ids=(sample.id,), values=(1.0 if good else -1.0,),
    )  # fmt: skip


class Label(Frozen):
    """An image and what was said of it: one line of a list of labels."""

    sample: Sample
    """its path is absolute, or relative to the list's folder"""
    good: float
    """in [0, 1]; above one half is good"""
    votes: int

    def labelled(self, folder: Path) -> Labelled:
        """For ``fit_labels``."""
        return Labelled(self.sample.prompt, folder.absolute() / self.sample.path, self.good, self.votes)


def read_labels(url: str, settings: LabelChoice) -> tuple[list[Label], dict[str, int]]:
    """Labels of a store's images, as they are now, and how many records said nothing, by why.

    Raises InputError when none says whether an image is good.
    """
    with store.open(url, create=False) as opened:
        records: Any = opened.feedback()
        labels, dropped = labels_from_feedback(records, criterion=settings.criterion, good_from=settings.good_from)
        samples = {(sample.prompt_id, sample.id): sample for sample in opened.samples()}
    known = [(found, samples[key]) for found in labels if (key := (found.prompt_id, found.sample_id)) in samples]
    if not known:
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(
            f"the store holds no like or rating of a single image for criterion {settings.criterion!r}"
            + (f" (left out: {why})" if why else "")
            + "; comparisons do not say whether an image is good"
        )
    return [Label(sample=sample, good=found.value, votes=found.votes) for found, sample in known], dropped


def write_labels(file: Path, labels: Sequence[Label]) -> None:
    """Images in the file's folder by relative paths, so that both may be moved together."""
    moved = [{"path": beside(file, Path(label.sample.path))} for label in labels]
    rows = [label.model_copy(update={"sample": label.sample.model_copy(update=update)})
            for label, update in zip(labels, moved, strict=True)]  # fmt: skip
    write_atomic(file, "".join(row.model_dump_json() + "\n" for row in rows))
