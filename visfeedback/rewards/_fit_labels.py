"""Fit a reward to good and bad labels of single images, after Lee et al. 2023 (arXiv 2302.12192), section 3.2.

r(image, prompt) in [0, 1] is an MLP on the features of a reward with two towers. With y in [0, 1] the label,

    loss = mean (y - r)^2 + auxiliary * mean over good images of -log P(prompt),
    P(prompt) = exp(r(image, prompt) / T) / sum over the prompt and its perturbations of exp(r(image, .) / T)

The second term, prompt classification, asks a good image which of several prompts it was made for, so that the reward
learns to read the prompt from images that no one labelled bad. Prompts are split in three as in ``fit.py``: to learn
from, to stop at (lowest squared error), to measure on.
May import: types, preferences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from visfeedback.plugins import VERSION, InputError
from visfeedback.rewards import _fit_folder
from visfeedback.rewards import load as load_reward
from visfeedback.rewards._fit_data import Split, open_image
from visfeedback.rewards._fit_folder import Config
from visfeedback.rewards._fit_label_learner import LabelLearner, Labelled, Labels, LabelSettings
from visfeedback.rewards._fit_models import Opener, network_of, survey
from visfeedback.rewards._fit_prompts import perturbed
from visfeedback.types.protocols import Progress, silent
from visfeedback.types.records import text_id

__all__ = ["LabelSettings", "Labelled", "fit_labels"]

Distractors = Callable[[str], Sequence[str]]
"""A prompt -> prompts that its images should not fit."""


def fit_labels(
    labelled: Sequence[Labelled], settings: LabelSettings, out: Path, opened: Opener = open_image,
    progress: Progress = silent, command: str = "", distractors: Distractors | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fit, measure and write ``out``, a folder that loads as ``fit@FOLDER``; returns the summary.

    ``distractors``: wrong prompts of a prompt; words changed as in ``_fit_prompts.py`` when left out. The same call
    does nothing when it was finished before. Raises InputError when all labels are alike, for fewer than 3 prompts, a
    base without vectors, and a folder that is taken.
    """
    began = time.perf_counter()
    rows = [row for row in labelled if row.weight > 0]
    parts = _split(rows, settings)
    others = _others(rows, settings, distractors)
    base = load_reward(settings.base, settings.device)
    network_of(base)
    data = Labels(tuple(rows), others)
    said = "\n".join(f"{r.prompt}|{r.image}|{r.good!r}|{r.weight!r}|{o}" for r, o in zip(rows, others, strict=True))
    chosen = settings.model_dump_json(exclude={"device"})
    identity = text_id(VERSION, "labels", chosen, base.origin.checkpoint_sha256, said)
    if (done := _fit_folder.claim(out, identity)) is not None:
        return done
    with _fit_folder.given_back(out):
        found = survey(base, data, opened, out / _fit_folder.WORK / "images", progress)
        if found.failed:
            raise InputError(f"{next(iter(found.failed.values()))}; every labelled image must be readable")
        if found.texts is None or found.texts.shape[1] != found.features.shape[1]:
            raise InputError(f"{base.name} has no vectors of one width for images and prompts; take --base clipscore")
    learner = LabelLearner(data, found, settings)
    course = learner.learn(parts, progress)
    summary = {
        "command": command, "identity": identity, "settings": settings.model_dump(mode="json"),
        "seconds": round(time.perf_counter() - began, 1),
        "prompts": {name: len({rows[i].prompt for i in part.tolist()}) for name, part in parts._asdict().items()},
        "labels": {name: len(part) for name, part in parts._asdict().items()},
        "good": round(sum(row.good > 0.5 for row in rows) / len(rows), 4), **course, **learner.measure(parts.test),
    }  # fmt: skip
    config = Config(kind="labels", base=settings.base, base_sha256=base.origin.checkpoint_sha256,
                    hidden=settings.hidden, inputs=len(learner.head.mean))  # fmt: skip
    _fit_folder.write(out, config, dict(learner.head.state_dict()), summary, _card(settings, summary))
    return summary


def _split(rows: Sequence[Labelled], settings: LabelSettings) -> Split:
    """By whole prompts, drawn by the seed and the prompt's text alone."""
    prompts = sorted({row.prompt for row in rows}, key=lambda text: text_id("labels", str(settings.seed), text))
    if len(prompts) < 3:
        raise InputError(
            f"labels of {len(prompts)} prompts; a fit needs at least 3: to learn from, to stop at, to measure on"
        )
    tested = min(max(1, round(settings.test * len(prompts))), len(prompts) - 2)
    validated = min(max(1, round(settings.validation * len(prompts))), len(prompts) - 1 - tested)
    sides = (prompts[tested + validated :], prompts[tested : tested + validated], prompts[:tested])
    found = Split(*(torch.tensor([i for i, row in enumerate(rows) if row.prompt in set(side)]) for side in sides))
    values = {rows[i].good for i in found.train.tolist()}
    if len(values) < 2:
        raise InputError(
            f"all {len(found.train)} labels to learn from say {values.pop():g}; a reward needs good and bad images"
        )
    return found


def _others(
    rows: Sequence[Labelled], settings: LabelSettings, distractors: Distractors | None
) -> tuple[tuple[str, ...], ...]:
    """Wrong prompts for each row; those of equal prompts are equal."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    if distractors is None:
        found = perturbed(prompts, settings.distractors, settings.seed)
    else:
        given = [[other for other in dict.fromkeys(distractors(prompt)) if other != prompt] for prompt in prompts]
        found = [others[: settings.distractors] for others in given]
    by_prompt = {prompt: tuple(others) for prompt, others in zip(prompts, found, strict=True)}
    return tuple(by_prompt[row.prompt] for row in rows)


def _card(settings: LabelSettings, summary: dict[str, Any]) -> str:
    def said(name: str) -> str:
        found = summary[name]
        return f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%}, n {found['count']})" if found else "-"

    def number(name: str) -> str:
        return "-" if summary[name] is None else f"{summary[name]:.3f}"

    labels, prompts = summary["labels"], summary["prompts"]
    return f"""# A reward fitted to good and bad labels

- What: an MLP on the features of `{settings.base}`, after Lee et al. 2023; load it with `--reward fit@FOLDER`.
- Scores: 0 = bad, 1 = good. Prompt classification: weight {settings.auxiliary:g}, temperature {settings.temperature:g}.
- Data: {labels["train"]} labels of {prompts["train"]} prompts to learn from, {labels["validation"]} of \
{prompts["validation"]} to stop at, {labels["test"]} of {prompts["test"]} to measure on; {summary["good"]:.0%} good.
- Best pass: {summary["best_epoch"]} of {summary["epochs"]}.
- Made by visfeedback {VERSION}, seed {settings.seed}: `{summary["command"]}`

Measured on labels of prompts that were not learned from, with 95% intervals:

| | this reward | `{settings.base}` |
|---|---|---|
| guesses the label | {said("accuracy")} | |
| a good image scores above a bad one | {number("auc")} | {number("base_auc")} |
| a good image's prompt scores above all its perturbations | {said("tells_prompt")} | {said("base_tells_prompt")} |
"""
