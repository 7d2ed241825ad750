"""The one training loop: settings in, a run folder out; killed at any moment, it goes on to the same bits (on a CPU; on
a GPU as far as its kernels repeat themselves, and attention's backward pass may not).

    steps: batch -> method.loss -> gradient -> AdamW        beside them: metrics, drift, previews, checkpoints

Everything that decides a step is a function of (settings, step) or is in the checkpoint. To add a method, data source
or file of the run folder, see the module of that name; the loop gains a hook when three users need it.
May import: types, config, store, sampling, rewards, preferences, methods, backbones, report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from visfeedback.plugins import InputError
from visfeedback.sampling.crew import Crew
from visfeedback.training import checkpoint
from visfeedback.training.checkpoint import Position, Snapshot
from visfeedback.training.monitor import Monitor
from visfeedback.training.policy import put_weights, weights_of
from visfeedback.training.run import Metrics, Run
from visfeedback.training.scorer import Silent
from visfeedback.training.settings import TrainSettings
from visfeedback.training.setup import Setup, prepare
from visfeedback.training.step import NotFinite
from visfeedback.training.surroundings import isolated, stop_on_signal
from visfeedback.training.wrap_up import finish
from visfeedback.types.locks import only_writer
from visfeedback.types.protocols import Progress, silent


def fit(
    settings: TrainSettings, out: Path, resume: bool = False, progress: Progress = silent, command: str = ""
) -> dict[str, Any]:
    """Train and return what ``out/summary.json`` says. ``command`` is what a person would type to repeat the run.

    Raises InputError for wrong settings, data, models or folders, before anything is written, when another process is
    training there, and when the loss stops being a number or a reward fails (the state before that is saved);
    KeyboardInterrupt after saving when asked to stop. Any other error has a note on what is saved.
    """
    guard = only_writer(Path(out)) if Crew.of_launcher().leads else nullcontext()
    with isolated(settings.engine), guard:
        setup = prepare(settings, Run(out), resume, progress)
        training = Training(setup)
        training.restore()
        with progress("training", settings.optim.steps) as advance:
            training.loop(advance)
        return finish(setup, training.position, command)


@dataclass
class Training:
    """The loop's state: how far it is."""

    setup: Setup
    position: Position = field(default_factory=Position)

    @property
    def _steps(self) -> int:
        return self.setup.settings.optim.steps

    @property
    def _done(self) -> bool:
        return self.position.step >= self._steps or bool(self.position.stopped)

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one, and forget metrics of steps after it."""
        setup, run = self.setup, self.setup.run
        if done := checkpoint.steps(run.checkpoints):
            folder = checkpoint.step_folder(run.checkpoints, done[-1])
            self.position = self._put(checkpoint.load(folder, setup.rank))
            checkpoint.restore_random_states(folder, setup.rank)
        if setup.main:
            Metrics(run.metrics).cut_back(self.position.step)
        setup.accelerator.wait_for_everyone()

    def loop(self, advance: Callable[[int], None]) -> None:
        """Optimizer steps until the last one."""
        monitor, every = Monitor(self.setup), self.setup.settings.engine.checkpoint_every
        advance(self.position.step)
        self.setup.stepper.loss.train()
        with stop_on_signal() as stop:
            if self.position.step == 0:
                monitor.preview(0)
            while not self._done:
                stopping = self._step(monitor, stop)
                advance(1)
                if stopping or self._done or (every and self.position.step % every == 0):
                    self.save()
                if stopping:
                    raise KeyboardInterrupt

    def _step(self, monitor: Monitor, stop: Callable[[], bool]) -> bool:
        """One step with everything around it; says whether to stop."""
        started = time.perf_counter()
        try:
            metrics, stopping = self.setup.stepper.step(self.position.step, stop)
        except NotFinite as error:
            raise self._lost(error) from None
        except InputError as error:
            raise self._kept(error) from None
        except Exception as error:
            self._rescue(error)
            raise
        self.position.step += 1
        measured = monitor.after(self.position.step)
        self.position.stopped = self._too_far(measured)
        if self.position.stopped:
            monitor.preview(self.position.step)
        self.position.seconds += time.perf_counter() - started
        counts = self.setup.source.counts(self.position.step)
        self._record(metrics | measured | {"seconds": self.position.seconds} | counts)
        return stopping

    def _too_far(self, measured: dict[str, float]) -> str:
        """Why to stop early, the same in every process; empty to go on. Only the first process measures."""
        limit = self.setup.settings.engine.stop_drift
        if not limit:
            return ""
        found = [measured.get("drift", 0.0)]
        if self.setup.accelerator.num_processes > 1:
            broadcast_object_list(found)
        return f"drift {found[0]:.3g} > engine.stop_drift = {limit:g}" if found[0] > limit else ""

    def _record(self, metrics: dict[str, float]) -> None:
        """A row of metrics.jsonl, and of the trackers, for every `log_every` steps."""
        self.position.window.append(metrics)
        if self.position.step % self.setup.settings.engine.log_every and not self._done:
            return
        row = {"step": self.position.step} | summarize(self.position.window)
        self.position.window = []
        if self.setup.main:
            Metrics(self.setup.run.metrics).append([row])
        self.setup.accelerator.log(row, step=self.position.step)

    def _lost(self, error: NotFinite) -> InputError:
        """Save what was good and say what to do."""
        self.save()
        kept = checkpoint.step_folder(self.setup.run.checkpoints, self.position.step)
        return InputError(
            f"{error} in step {self.position.step + 1}; the state before it is in {kept}; start again in another --out "
            f"with a lower --optim.lr (now {self.setup.settings.optim.lr:g}), a --optim.warmup, or --model.dtype fp32"
        )

    def _kept(self, error: InputError) -> InputError:
        """Keep what was learned when data or rewards fail, in all processes alike; nothing of this step has happened.

        The same kind of error, which says how to go on: a server may answer later, what is wrong would be wrong again.
        """
        step, saved = self.position.step, ""
        if step:
            self.save()
            saved = f"step {step} is saved, "
        if isinstance(error, Silent):
            return type(error)(f"{error}; {saved}go on from {'it' if step else 'the start'} with --resume")
        again = "--resume goes on from it with the same settings, " if step else ""
        return type(error)(f"{error}; {saved}{again}other settings need another --out")

    def _rescue(self, error: Exception) -> None:
        """Keep what was learned when a program fails, and note on its error what there is to go on from.

        Other processes may be anywhere, and a checkpoint is written together.
        """
        step, setup = self.position.step, self.setup
        if not step:
            return
        why = "other processes may still be at work" if setup.accelerator.num_processes > 1 else ""
        if setup.stepper.torn:
            why = "its update had begun"
        if not why:
            try:
                self.save()
            except Exception as second:
                why = f"{type(second).__name__}: {second}"
        if not why:
            error.add_note(f"step {step} is saved, go on from it with --resume")
            return
        kept = checkpoint.steps(setup.run.checkpoints)
        there = f"--resume goes on from step {kept[-1]}" if kept else "there is no checkpoint"
        error.add_note(f"step {step} could not be saved ({why}); {there}")

    def save(self) -> None:
        """A checkpoint of this step."""
        setup, stepper = self.setup, self.setup.stepper
        scaler = setup.accelerator.scaler
        snapshot = Snapshot(
            position=self.position,
            adapter=weights_of(setup.backbone),
            optimizer={
                "optimizer": stepper.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
            },
            method=stepper.state,
            ema=stepper.average.values if stepper.average else None,
            source=setup.source.save(self.position.step),
        )
        barrier, keep = setup.accelerator.wait_for_everyone, setup.settings.engine.keep
        checkpoint.save(setup.run.checkpoints, snapshot, setup.rank, barrier, keep)

    def _put(self, snapshot: Snapshot) -> Position:
        """The inverse of `save`."""
        stepper = self.setup.stepper
        put_weights(self.setup.backbone, snapshot.adapter)
        stepper.optimizer.load_state_dict(snapshot.optimizer["optimizer"])
        if self.setup.accelerator.scaler and snapshot.optimizer["scaler"]:
            self.setup.accelerator.scaler.load_state_dict(snapshot.optimizer["scaler"])
        stepper.state.update(snapshot.method)
        if stepper.average and snapshot.ema:
            stepper.average.load(snapshot.ema)
        if snapshot.source:
            self.setup.source.restore(snapshot.source)
        return snapshot.position


LAST = {"lr", "seconds", "images_seen", "images_made", "drift"}
"""metrics of which a row shows the newest value instead of the mean"""


def summarize(window: list[dict[str, float]]) -> dict[str, float]:
    """Several steps as one row: means, but the newest value of clocks and measures; keys in order of appearance."""
    row: dict[str, float] = {}
    for name in dict.fromkeys(name for metrics in window for name in metrics):
        values = [metrics[name] for metrics in window if name in metrics]
        row[name] = values[-1] if name in LAST or name.startswith("holdout_") else sum(values) / len(values)
    return row
