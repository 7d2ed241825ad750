"""Opening the source of a run: which data it needs, whether the settings fit, and the batches on top of it.

May import: types, plugins, prompts, sampling, rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from visfeedback import prompts
from visfeedback.plugins import InputError
from visfeedback.sampling.render import GenerateSettings, resolve
from visfeedback.sampling.rollout import Walk
from visfeedback.training import tables
from visfeedback.training.checks import check_differ, check_sampler, check_share
from visfeedback.training.data import Pair
from visfeedback.training.images import Picture, load_images, load_real
from visfeedback.training.moved import follow
from visfeedback.training.paths import PathBatches, check_rounds
from visfeedback.training.rounds import Rounds, Studio
from visfeedback.training.run import Run
from visfeedback.training.scored import FreshSets, ScoredBatches
from visfeedback.training.scorer import Scorer
from visfeedback.training.settings import TrainSettings
from visfeedback.training.settings_online import Rollout
from visfeedback.training.sources import Feed, PromptBatches, Source, drawn_probe
from visfeedback.training.stored_images import open_images, open_real
from visfeedback.training.stored_paths import StoredPath, load_paths, open_paths
from visfeedback.training.together import Gather, gather_over
from visfeedback.types.files import read_jsonl, write_atomic
from visfeedback.types.records import Frozen, Prompt

Kind = Literal["pairs", "images", "prompts", "paths"]
"""what is read before anything is loaded, and kept in the run folder"""


def kind_of(settings: TrainSettings) -> Kind:
    """What this run reads. Raises InputError when the settings do not fit the method."""
    eats, data, source = settings.method.eats, settings.data, settings.rollout.source  # type: ignore[attr-defined]
    if eats == "pairs":
        return "pairs"
    stored = source == "stored" or (source == "auto" and bool(data.images or data.store or data.paths))
    if stored and eats == "scored":
        return "images"
    if stored and eats == "rollouts":
        return "paths"
    if stored and source == "stored":
        raise InputError(f"method {settings.method.name} draws its images itself; leave out --rollout.source stored")  # type: ignore[attr-defined]
    return "prompts"


def check(settings: TrainSettings) -> None:
    """Raises InputError, before anything is loaded, for settings that cannot work together."""
    method: Any = settings.method
    kind, rollout = kind_of(settings), settings.rollout
    if kind == "paths" and not getattr(method, "whole_groups", False):
        raise InputError(
            f"{method.name} learns from scores, and stored paths have what people said of pairs; choose "
            "--method.name d3po, or draw anew: --rollout.source fresh"
        )
    if kind == "prompts" and not settings.reward.name:
        raise InputError(f"{method.name} needs somebody who scores its images; give --reward.name NAME")
    if method.eats == "rollouts":
        if rollout.eta == 0:
            raise InputError(
                f"rollout.eta = 0 leaves no randomness for {method.name} to learn from; give --rollout.eta 1"
            )
        if settings.lora.dropout:
            raise InputError(
                f"lora.dropout = {settings.lora.dropout:g} would change log-probabilities by chance; for {method.name} "
                "give --lora.dropout 0"
            )
    if kind == "prompts":
        check_sampler(rollout, method)
        if method.eats == "prompts" and rollout.random_times != (0.0, 1.0):
            raise InputError(
                f"rollout.random_times: {method.name} takes all of its steps by rollout.eta; leave out "
                "--rollout.random-times"
            )
    least = getattr(method, "least_group", 1)
    if kind == "prompts" and method.eats != "prompts" and rollout.per_prompt < least:
        raise InputError(
            f"rollout.per_prompt = {rollout.per_prompt}: {method.name} compares images of a prompt and needs {least} "
            f"or more; give --rollout.per-prompt {max(least, 4)}"
        )


@dataclass(frozen=True)
class Material:
    """What a run learns from, as its folder keeps it."""

    records: Sequence[Any]
    """`RECORDS` of its kind"""
    real: Sequence[Picture] = ()

    def write(self, run: Run, kind: Kind) -> None:
        """Into the folder, unless it is there."""
        for file, records in ((record_file(run, kind), self.records), (run.real, self.real)):
            if records and not file.exists():
                write_atomic(file, "".join(record.model_dump_json() + "\n" for record in records))


def gather_material(settings: TrainSettings, run: Run, pairs: Callable[[], Sequence[Any]]) -> Material:
    """What a run that goes on recorded, else what the settings name; ``pairs`` reads those."""
    kind = kind_of(settings)
    file = record_file(run, kind)
    if file.exists():
        real = list(read_jsonl(run.real, Picture)) if run.real.exists() else []
        return Material(follow(list(read_jsonl(file, RECORDS[kind])), run.root), follow(real, run.root))
    return Material(pairs() if kind == "pairs" else _load(settings, kind), load_real(settings.data))


def _load(settings: TrainSettings, kind: Kind) -> Sequence[Any]:
    if kind == "images":
        return load_images(settings.data, bool(settings.reward.name))
    if kind == "paths":
        return load_paths(settings.data)
    return load_prompts(settings)


def load_prompts(settings: TrainSettings) -> list[Prompt]:
    """What is drawn, each prompt once. Raises InputError when nothing is named."""
    if not settings.rollout.prompts:
        raise InputError("nothing to draw: give --rollout.prompts shapes:train, a file of prompts, or a text")
    found = [prompt for source in settings.rollout.prompts for prompt in prompts.load(source)]
    return list({prompt.id: prompt for prompt in found}.values())


RECORDS: dict[Kind, type[Frozen]] = {"pairs": Pair, "images": Picture, "prompts": Prompt, "paths": StoredPath}


def record_file(run: Run, kind: Kind) -> Path:
    """Where a run folder keeps what it learns from."""
    return {"pairs": run.pairs, "prompts": run.prompts}.get(kind, run.images)


def open_source(worker: tables.Worker, accelerator: Accelerator, material: Material, state: dict[str, Any]) -> Source:
    """The source of methods that do not learn from pairs; ``state`` is the method's."""
    settings, kind = worker.settings, kind_of(worker.settings)
    real = open_real(worker, material.real) if material.real else None
    if kind == "images":
        scorer = open_scorer(settings, worker) if settings.reward.name else None
        return open_images(worker, material.records, scorer, state, real)
    if kind == "paths":
        return open_paths(worker, material.records, gather_over(accelerator))
    return _fresh(worker, accelerator, material.records, state, real)


def open_scorer(settings: TrainSettings, worker: tables.Worker) -> Scorer:
    """The rewards. Raises InputError for one that has no gradient where the method needs it."""
    scorer = Scorer(settings.reward, str(worker.backbone.device))
    if getattr(settings.method, "needs_gradient", False) and not scorer.reward.differentiable:
        method: Any = settings.method
        raise InputError(
            f"{method.name} needs the gradient of its reward, {settings.reward.name} has none; choose one that has: "
            "visfeedback rewards list"
        )
    return scorer


def _fresh(
    worker: tables.Worker, accelerator: Accelerator, asked: Sequence[Prompt], state: dict[str, Any],
    real: ScoredBatches | None,
) -> Feed:  # fmt: skip
    settings, backbone, gather = worker.settings, worker.backbone, gather_over(accelerator)
    scorer, walk = open_scorer(settings, worker), walk_of(settings.rollout, worker.backbone)
    texts = list(dict.fromkeys(prompt.text for prompt in asked))
    scorer.check(texts)
    studio = Studio(
        settings, backbone, scorer, walk, worker.autocast, gather, worker.progress, worker.rank, worker.ranks
    )
    eats: str = settings.method.eats  # type: ignore[attr-defined]
    if eats == "prompts":
        batches: Any = PromptBatches(asked, settings, walk, worker.ranks)
    else:
        check_differ(settings, backbone, walk)
        check_share(settings, worker.ranks)
        rounds = Rounds(studio, asked, eats == "rollouts", state)
        batches = _on_rounds(rounds, worker, walk, gather, real)
    learned = f"images it drew of {len(texts)} prompts, scored by {settings.reward.name}"

    def probe() -> Any:
        return drawn_probe(backbone, asked, settings.engine.seed, walk, worker.autocast)

    watch = scorer.look if scorer.watched is not None else None
    return Feed(settings, backbone, batches, texts, learned, probe, reward=scorer.reward, watch=watch)


def _on_rounds(
    rounds: Rounds, worker: tables.Worker, walk: Walk, gather: Gather,
    real: ScoredBatches | None,
) -> Any:  # fmt: skip
    """Batches of paths, or of the images at their ends."""
    settings, process, ranks = worker.settings, worker.backbone.process, worker.ranks
    if settings.method.eats == "rollouts":  # type: ignore[attr-defined]
        check_rounds(settings, rounds.size)
        return PathBatches(rounds, settings, process, walk, gather, made=rounds.size * ranks)
    optim, rollout = settings.optim, settings.rollout
    kept = getattr(settings.method, "kept_share", lambda per_prompt: 1.0)(rollout.per_prompt)
    learned = round(rounds.size * kept) * rollout.epochs
    per_round = rollout.every or max(1, learned // (optim.batch_size * optim.accumulate))
    return ScoredBatches(
        FreshSets(rounds), settings, process, per_round, processes=ranks, made=rounds.size * ranks, real=real,
        gather=gather,
    )  # fmt: skip


def walk_of(rollout: Rollout, backbone: Any) -> Walk:
    """How a run draws: what the settings leave open is the model's own."""
    guidance = rollout.guidance if rollout.guidance >= 0 else None
    wanted = GenerateSettings(steps=rollout.steps or None, guidance=guidance, sampler=rollout.sampler)
    known = resolve(wanted, backbone.pipe)
    assert known.steps is not None and known.guidance is not None
    sampler = known.sampler if rollout.sampler else ""
    guidance = known.guidance if known.guidance > 1 else 1.0
    return Walk(known.steps, guidance, rollout.eta, rollout.random_times, rollout.half, sampler)
