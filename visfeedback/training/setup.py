"""From settings to everything the loop needs: devices, network, pairs, tables, optimizer. Nothing is trained here.

Checks come first and files last: until everything is ready the run folder holds nothing but `cache/`.
May import: types, config, plugins, store, backbones, report, and accelerate.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list

from visfeedback.backbones.load import pick_device
from visfeedback.plugins import InputError
from visfeedback.report.tables import flat
from visfeedback.training import looks, openers, tables
from visfeedback.training.batches import PairBatches, Recipe, Tables
from visfeedback.training.data import Pair, load_pairs, split
from visfeedback.training.optimizer import build_optimizer
from visfeedback.training.pair_source import PairSource
from visfeedback.training.policy import Average, load_policy, park
from visfeedback.training.run import Run, check_folder, public, write_settings
from visfeedback.training.settings import Engine, TrainSettings
from visfeedback.training.sources import Source
from visfeedback.training.step import Loss, Stepper
from visfeedback.training.surroundings import environment
from visfeedback.types.files import write_json
from visfeedback.types.protocols import Progress, silent


@dataclass
class Setup:
    """A run that is ready to train."""

    settings: TrainSettings
    run: Run
    accelerator: Accelerator
    backbone: Any
    stepper: Stepper
    source: Source
    progress: Progress = silent

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.accelerator.is_main_process

    @property
    def rank(self) -> int:
        return self.accelerator.process_index


def prepare(settings: TrainSettings, run: Run, resume: bool, progress: Progress) -> Setup:
    """Raises InputError for anything that is wrong with settings, data, model or folder."""
    openers.check(settings)
    accelerator = make_accelerator(settings.engine, run)
    if accelerator.is_main_process:
        check_folder(run, settings, resume)
    recorded = _recorded(run)
    _same_machine(recorded, accelerator, settings.engine, run)
    material = _material(settings, run, accelerator)
    backbone = load_policy(settings, str(accelerator.device))
    _same_model(recorded, backbone, run)
    optimizer = build_optimizer(list(backbone.parameters()), settings.optim)
    worker = tables.Worker(
        settings, backbone, run.cache, progress, accelerator.autocast, accelerator.wait_for_everyone,
        accelerator.process_index, accelerator.num_processes,
    )  # fmt: skip
    state: dict[str, Any] = {}  # the method's
    source = _source(worker, accelerator, material, state)
    stored, cache = openers.kind_of(settings) in ("pairs", "images"), settings.engine.cache
    if stored and cache.moments and cache.text:
        park(backbone)
    if accelerator.is_main_process:
        _write_start(run, settings, material, accelerator, backbone)
    accelerator.wait_for_everyone()
    _start_trackers(accelerator, settings)
    stepper = _stepper(settings, accelerator, backbone, source, optimizer, state)
    return Setup(settings, run, accelerator, backbone, stepper, source, progress)


def _source(
    worker: tables.Worker, accelerator: Accelerator, material: openers.Material, state: dict[str, Any]
) -> Source:
    if openers.kind_of(worker.settings) != "pairs":
        return openers.open_source(worker, accelerator, material, state)
    train, held = split(material.records, worker.settings.data.holdout)
    return PairSource(*make_batches(worker, train, held))


def make_accelerator(engine: Engine, run: Run) -> Accelerator:
    """Device, precision and trackers. Raises InputError for what this machine does not have or cannot do."""
    missing = [name for name in engine.trackers if find_spec(name) is None]
    if missing:
        raise InputError(f"tracker {missing[0]} is not installed: pip install 'visfeedback[trackers]'")
    device = _device(engine)
    try:
        return Accelerator(
            cpu=device.type == "cpu", mixed_precision=engine.mixed_precision, log_with=list(engine.trackers) or None,
            project_dir=str(run.root / "trackers"),
            # `accumulate` is ours: a launcher's setting would divide the gradient once more.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )  # fmt: skip
    except ValueError as error:
        line = (str(error).splitlines() or ["it is not supported"])[0]
        raise InputError(f"engine.mixed_precision = {engine.mixed_precision}: {line}") from None


def _device(engine: Engine) -> torch.device:
    """What the settings mean on this machine, made the one that accelerate will use."""
    device, alone = pick_device(engine.device), int(os.environ.get("WORLD_SIZE", "1")) == 1
    if device.type == "cpu" and engine.mixed_precision == "fp16":
        raise InputError("engine.mixed_precision = fp16 needs a GPU, and this run is on the cpu; choose bf16 or no")
    if ":" in engine.device and not alone:
        raise InputError(f"engine.device = {engine.device} is one GPU for several processes; choose cuda or auto")
    if alone:  # accelerate remembers the device and the precision of an earlier run
        AcceleratorState._reset_state(reset_partial_state=True)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    return device


def _recorded(run: Run) -> dict[str, Any]:
    """environment.json of a run that goes on; empty for a new one."""
    try:
        return dict(json.loads(run.environment.read_text(encoding="utf-8"))) if run.environment.exists() else {}
    except (ValueError, TypeError):
        raise InputError(f"{run.environment} is damaged; put it back from a copy, or name another --out") from None


def _same_machine(recorded: dict[str, Any], accelerator: Accelerator, engine: Engine, run: Run) -> None:
    """Use the recorded number of threads; insist on the kind of device and the number of processes: all decide the last
    bits. Another model of GPU is only warned about."""
    device, name = accelerator.device, _device_name(accelerator.device)
    kind, before = recorded.get("device", str(device)).partition(":")[0], recorded.get("device_name", name)
    if kind != device.type:
        raise InputError(
            f"the run in {run.root} was started on {kind} ({before}), now it is {device.type}; go on there"
        )
    if before != name:
        warnings.warn(f"the run was started on {before}, now it is {name}: the last bits may differ", stacklevel=2)
    if threads := recorded.get("threads") or engine.threads:
        torch.set_num_threads(threads)
    before, now = recorded.get("processes", accelerator.num_processes), accelerator.num_processes
    if before != now:
        raise InputError(
            f"the run in {run.root} was started with {before} processes, now there are {now}; use {before}"
        )


def _same_model(recorded: dict[str, Any], backbone: Any, run: Run) -> None:
    """The reference must be what it was, and the trained weights must fit."""
    for name in ("model_revision", "adapter_revision"):
        before, now = recorded.get(name), _revisions(backbone)[name]
        if before is not None and before != now:
            what = name.partition("_")[0]
            raise InputError(f"{what} has changed since the run in {run.root} was started ({before}, now {now})")


def _revisions(backbone: Any) -> dict[str, str]:
    return {"model_revision": backbone.revision, "adapter_revision": backbone.adapter_revision}


def _material(settings: TrainSettings, run: Run, accelerator: Accelerator) -> openers.Material:
    """What is learned; every process gets the first one's."""
    box: list[Any] = [None]
    if accelerator.is_main_process:
        box = [openers.gather_material(settings, run, lambda: load_pairs(settings.data))]
    if accelerator.num_processes > 1:
        broadcast_object_list(box)
    return box[0]


def make_batches(
    worker: tables.Worker, train: Sequence[Pair], held: Sequence[Pair] = ()
) -> tuple[PairBatches, PairBatches | None]:
    """Batches of the training and of the held-out pairs, with the tables that the settings ask for filled."""
    settings = worker.settings
    optim, data, cache = settings.optim, settings.data, settings.engine.cache
    recipe = Recipe(
        settings.engine.seed, optim.batch_size, optim.accumulate, worker.ranks, cache.draws, data.prompt_drop,
        data.flip, data.group, data.times,
    )  # fmt: skip
    empty, process = Tables(tables.NOTHING, tables.NOTHING), worker.backbone.process
    batches, held_out = PairBatches(train, empty, process, recipe), PairBatches(held, empty, process, recipe)
    looked_at, probed = looks.held_out(held), looks.probe(train, optim.batch_size)
    # What is looked at comes first, for what is trained on grows when a run goes on to more steps.
    needed = [held_out.shown(looked_at), batches.shown(probed), batches.shown(batches.items(optim.steps))]
    images, texts = (list(dict.fromkeys(key for part in needed for key in part[which])) for which in (0, 1))
    sides = ((p.winner, p.winner_path, p.loser, p.loser_path) for p in (*train, *held))
    paths = {image: path for one, there, other, where in sides for image, path in ((one, there), (other, where))}
    ready = Tables(tables.moments(worker, paths, images), tables.text(worker, texts))
    batches, held_out = PairBatches(train, ready, process, recipe), PairBatches(held, ready, process, recipe)
    batches = tables.with_reference(worker, batches, batches.items(optim.steps), batches.repeats(optim.steps))
    if not held:
        return batches, None
    return batches, tables.with_reference(worker, held_out, looked_at, looks.times(settings) > 1)


def _stepper(
    settings: TrainSettings, accelerator: Accelerator, backbone: Any, source: Source, optimizer: Any,
    state: dict[str, Any],
) -> Stepper:  # fmt: skip
    loss, optimizer = accelerator.prepare(Loss(settings.method, backbone), optimizer)
    ema = settings.engine.ema
    average = Average(backbone.named_parameters(), ema.decay) if ema.decay else None
    reward, watch = getattr(source, "reward", None), getattr(source, "watch", None)
    return Stepper(settings, accelerator, backbone, loss, optimizer, source.batches, state, average, reward, watch)


def _write_start(
    run: Run, settings: TrainSettings, material: openers.Material, accelerator: Accelerator, backbone: Any
) -> None:
    """config.toml comes last: a folder that has it has the rest."""
    if not run.environment.exists():
        about = {
            "seed": settings.engine.seed, "threads": torch.get_num_threads(), "processes": accelerator.num_processes,
            "device": str(accelerator.device), "device_name": _device_name(accelerator.device),
            **_revisions(backbone),
        }  # fmt: skip
        write_json(run.environment, environment(**about))
    material.write(run, openers.kind_of(settings))
    write_settings(run, settings)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _start_trackers(accelerator: Accelerator, settings: TrainSettings) -> None:
    if settings.engine.trackers:
        knobs = {key: str(value) for key, value in flat(public(settings).model_dump(mode="json"))}
        accelerator.init_trackers("visfeedback", knobs)
