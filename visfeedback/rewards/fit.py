"""Train a reward from comparisons of pictures by Bradley-Terry, and load what was trained: ``fit@FOLDER``.

The reward r is learned from P(a better than b) = s(r(a) - r(b)), with soft labels, weights and ties as
``_preference_math.py`` states. Two kinds: ``head`` learns a linear map or one hidden layer on the features of any
reward with a network (shapes_clip, clipscore, pickscore, hpsv2, imagereward, ...); ``network`` goes on training the
upper layers of such a network itself, two-tower CLIP or BLIP, as PickScore and ImageReward were made. Good and bad
labels of single images are another matter: ``fit_labels``, in ``_fit_labels.py``.

Prompts are split in three. Most teach; some say when to stop and at which temperature probabilities are right
(one number T, so that s(r(a) - r(b)) is calibrated; it is part of the score); the rest are only measured on.
The folder holds what ``_fit_folder.py`` says. A fit reads its base again when it is loaded, and refuses another one.
Left out: several processes; a base in less than fp32 while it is fitted. May import: types, preferences.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from visfeedback.plugins import VERSION, InputError
from visfeedback.rewards import _fit_folder, _weights
from visfeedback.rewards import load as load_reward
from visfeedback.rewards._fit_data import Comparison, Split, Table, from_rows, open_image, split, table
from visfeedback.rewards._fit_folder import Config
from visfeedback.rewards._fit_label_head import LabelHead
from visfeedback.rewards._fit_labels import Labelled, LabelSettings, fit_labels
from visfeedback.rewards._fit_loop import Objective, Plan, Position, learn
from visfeedback.rewards._fit_models import Head, HeadLearner, NetworkLearner, Opener, Survey, network_of, survey
from visfeedback.rewards._fitted import FittedHead, FittedNetwork
from visfeedback.rewards._preference_math import accuracy, bradley_terry, calibration_error, temperature
from visfeedback.types.protocols import Progress, silent
from visfeedback.types.records import About, Frozen, Origin, text_id

__all__ = [
    "Comparison", "LabelSettings", "Labelled", "Settings", "fit", "fit_labels", "from_rows", "load",
]  # fmt: skip

ABOUT = About(measures="what the comparisons it was fitted to prefer", typical="-5 to 5", licence="that of its base")
USAGE = "fit@FOLDER"
"""It has no weights of its own to fall back on."""
RANGE = (-float("inf"), float("inf"))
RATES = {"head": 3e-3, "network": 1e-5}


class Settings(Frozen):
    """What is fitted, and how."""

    base: str = "shapes_clip"
    """the reward to start from: NAME[:VARIANT][@PATH_OR_HUB]; it must have a network"""
    train: Literal["head", "network"] = "head"
    """head: a small model on the base's features; network: the base's own upper layers"""
    hidden: int = Field(default=0, ge=0)
    """width of the head's hidden layer; 0: a linear head"""
    frozen: float = Field(default=0.7, ge=0, le=1)
    """network: share of every tower's layers, from the input, that stays as it is"""
    ties: Literal["soft", "davidson", "drop"] = "soft"
    """soft: a tie is P(a) = 1/2; davidson: a third outcome with its own parameter; drop: left out"""
    epochs: int = Field(default=100, ge=1)
    """most passes over the comparisons"""
    patience: int = Field(default=10, ge=1)
    """passes without a better validation loss before it stops"""
    batch: int = Field(default=64, ge=1)
    """comparisons of a step"""
    lr: float | None = Field(default=None, gt=0)
    """Adam's step; 3e-3 for a head, 1e-5 for a network when left out"""
    l2: float = Field(default=0.1, ge=0)
    """weight of half the squared distance from the start"""
    validation: float = Field(default=0.2, gt=0, lt=1)
    """share of the prompts that say when to stop and calibrate the temperature"""
    test: float = Field(default=0.2, gt=0, lt=1)
    """share of the prompts that are only measured on"""
    seed: int = Field(default=0, ge=0)
    """the split, the order of comparisons and a hidden layer's start follow from it"""
    device: str = "cpu"
    """cpu, cuda, ..."""


def fit(
    comparisons: Sequence[Comparison],
    settings: Settings,
    out: Path,
    opened: Opener = open_image,
    progress: Progress = silent,
    command: str = "",
) -> dict[str, Any]:
    """Fit, measure and write ``out``; returns the summary, with ``failed``: a line for each image that cannot be read.

    The same call goes on where it was interrupted, and does nothing when it was finished. Comparisons with an image
    that ``opened`` refuses (InputError) are left out.
    Raises InputError when nothing can be learned, for a base without a network, and for a folder that is taken.
    """
    began = time.perf_counter()
    data, dropped = table(comparisons, settings.ties)
    base = load_reward(_absolute(settings.base), settings.device)
    network_of(base)
    shares = (settings.validation, settings.test, settings.seed)
    split(data, torch.arange(len(data.comparisons)), *shares)  # wrong input shows before the folder is touched
    chosen = settings.model_dump_json(exclude={"device"})
    identity = text_id(VERSION, chosen, base.origin.checkpoint_sha256, data.digest)
    if (done := _fit_folder.claim(out, identity)) is not None:
        return done
    with _fit_folder.given_back(out):
        found = survey(base, data, opened, out / _fit_folder.WORK / "images", progress)
        rows = _usable(data, found)
        parts = split(data, rows, *shares)
    if len(rows) < len(data.comparisons):
        dropped["with an unreadable image"] = len(data.comparisons) - len(rows)
    learner = _learner(base, data, found, parts, opened, settings)
    objective = Objective(learner, data.pairs, settings.ties)
    position = learn(objective, parts, _plan(settings), out / _fit_folder.WORK / "checkpoint.pt", progress)
    summary = {
        "command": command, "identity": identity, "settings": settings.model_dump(mode="json"),
        "seconds": round(time.perf_counter() - began, 1), **_counts(data, parts), "left_out": dropped,
        **_course(position, objective), **_measure(objective, data, found, parts, settings),
        "failed": list(found.failed.values()),
    }  # fmt: skip
    config, weights = _result(base, learner, settings, summary["temperature"])
    _fit_folder.write(out, config, weights, summary)
    return summary


def _course(position: Position, objective: Objective) -> dict[str, Any]:
    tie = None if objective.log_tie is None else float(objective.log_tie.detach())
    return {
        "epochs": position.epoch, "best_epoch": position.best_epoch, "history": position.history, "log_tie": tie,
    }  # fmt: skip


def _absolute(reference: str) -> str:
    """A base that is a local path is found from any folder."""
    name, at, path = reference.partition("@")
    return f"{name}@{Path(path).expanduser().absolute()}" if at and Path(path).expanduser().exists() else reference


def _usable(data: Table, found: Survey) -> Tensor:
    """Rows of pairs of which both images could be read. InputError when there are none."""
    bad = torch.tensor([image in found.failed for image, _ in data.items])
    rows = (~(bad[data.pairs.a] | bad[data.pairs.b])).nonzero()[:, 0]
    if not len(rows):
        raise InputError(f"no comparison has two images that can be read: {next(iter(found.failed.values()))}")
    return rows


def _counts(data: Table, parts: Split) -> dict[str, dict[str, int]]:
    return {
        "prompts": {name: len(data.pairs.prompt[part].unique()) for name, part in parts._asdict().items()},
        "comparisons": {name: len(part) for name, part in parts._asdict().items()},
    }


def _plan(settings: Settings) -> Plan:
    lr = settings.lr if settings.lr is not None else RATES[settings.train]
    return Plan(settings.ties, settings.epochs, settings.batch, lr, settings.l2, settings.patience, settings.seed)


def _learner(
    base: Any, data: Table, found: Survey, parts: Split, opened: Opener, settings: Settings
) -> HeadLearner | NetworkLearner:
    """Starts as the base at the temperature that suits what is learned from."""
    start = _base_temperature(data, found, parts.train)
    if settings.train == "network":
        return NetworkLearner(base, data, opened, settings.frozen, start)
    train = data.pairs.at(parts.train)
    return HeadLearner(data, found, settings.hidden, start, torch.cat([train.a, train.b]).unique(), settings.seed)


def _base_temperature(data: Table, found: Survey, rows: Tensor) -> float:
    pairs = data.pairs.at(rows)
    return temperature(found.scores[pairs.a] - found.scores[pairs.b], pairs.share, pairs.weight)


def _measure(objective: Objective, data: Table, found: Survey, parts: Split, settings: Settings) -> dict[str, Any]:
    """The temperature on validation; accuracy, loss and calibration on test, beside the base's."""
    held, tested = data.pairs.at(parts.validation), data.pairs.at(parts.test)
    heat = temperature(objective.over(parts.validation, settings.batch)[1], held.share, held.weight)
    gap = objective.over(parts.test, settings.batch)[1]
    base = (found.scores[tested.a] - found.scores[tested.b]) / _base_temperature(data, found, parts.validation)
    gaps = {"base": base, "before": gap, "after": gap / heat}
    prompts = [data.prompts[n] for n in tested.prompt.tolist()]
    shares = {"accuracy": accuracy(gap, tested.share, prompts), "base_accuracy": accuracy(base, tested.share, prompts)}
    return {
        "temperature": heat,
        **{name: None if value is None else asdict(value) for name, value in shares.items()},
        "nll": {name: float(bradley_terry(value, tested.share, tested.weight)) for name, value in gaps.items()},
        "ece": {name: calibration_error(value, tested.share) for name, value in gaps.items()},
    }


def _result(
    base: Any, learner: HeadLearner | NetworkLearner, settings: Settings, heat: float
) -> tuple[Config, dict[str, Tensor]]:
    """What is written, the temperature in it."""
    about = {"base": _absolute(settings.base), "base_sha256": base.origin.checkpoint_sha256}
    if isinstance(learner, HeadLearner):
        learner.head.temperature.fill_(heat)
        inputs = len(learner.head.mean)
        return Config(kind="head", hidden=settings.hidden, inputs=inputs, **about), dict(learner.head.state_dict())
    return Config(kind="network", scale=float(learner.scale.detach()) / heat, **about), dict(learner.trained)


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> FittedHead | FittedNetwork:
    """The reward in the folder ``path``, on its base, which computes in ``dtype``; a head computes in fp32.

    Raises InputError for a folder that holds no fit, weights that do not fit, and a base that is another one now.
    """
    if variant or not path:
        raise InputError("a fitted reward is a folder: write --reward fit@FOLDER")
    folder = Path(path).expanduser()
    config = _fit_folder.read_config(folder)
    file = folder / _fit_folder.WEIGHTS
    _weights.dtype_of(dtype)
    base = load_reward(config.base, device, dtype)  # pyright: ignore[reportArgumentType]
    if base.origin.checkpoint_sha256 != config.base_sha256:
        raise InputError(
            f"{path} was fitted on another checkpoint of {config.base} (sha256 {config.base_sha256[:16]}, now "
            f"{base.origin.checkpoint_sha256[:16]}); give that one back, or set base in {folder / _fit_folder.CONFIG}"
        )
    state = _weights.read_state(file, "fit")
    origin = Origin(model=path, checkpoint_sha256=_digest(config, file), dtype=base.origin.dtype)
    if config.kind == "head":
        head = Head(config.inputs, config.hidden)
        _weights.fill(head, state, file, "fit")
        return FittedHead(base, head, origin)
    if config.kind == "labels":
        labels = LabelHead(config.inputs, config.hidden)
        _weights.fill(labels, state, file, "fit")
        return FittedHead(base, labels, origin, range=(0.0, 1.0))
    network = network_of(base)
    untouched = [name for name in network.state_dict() if name not in state]
    _weights.fill(network, state, file, "fit", ignore=untouched)
    return FittedNetwork(base, config.scale, f"fit-{origin.checkpoint_sha256[:16]}", origin)


def _digest(config: Config, file: Path) -> str:
    """Of all that the score depends on: a trained network's scale and the layers that stayed are not in its file."""
    weights = _weights.sha256(file, "fit")
    if config.kind != "network":
        return weights
    return _weights.joint_sha256([weights, config.base_sha256, repr(config.scale)])
