"""Whether the images that a run draws can be drawn as its settings say.

May import: types, plugins, sampling.
"""

from __future__ import annotations

from typing import Any

from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import Walk, noisy_steps
from visfeedback.sampling.samplers import draws_noise
from visfeedback.training.settings import TrainSettings
from visfeedback.training.settings_online import Rollout


def check_sampler(rollout: Rollout, method: Any) -> None:
    """Another scheduler's steps have neither a log-probability nor a gradient, nor DDIM's eta."""
    if not rollout.sampler:
        return
    if method.eats != "scored":
        needs = "the log-probabilities" if method.eats == "rollouts" else "the gradient"
        raise InputError(
            f"rollout.sampler = {rollout.sampler!r}: {method.name} needs {needs} of DDIM's steps; leave out "
            "--rollout.sampler"
        )
    if rollout.eta:
        raise InputError(
            f"rollout.sampler = {rollout.sampler!r} draws in its own way, and rollout.eta = {rollout.eta:g} is for the "
            "model's own DDIM steps; give --rollout.eta 0"
        )


def check_share(settings: TrainSettings, ranks: int) -> None:
    """Raises InputError when the prompts of a round cannot be shared equally."""
    count = settings.rollout.prompts_per_round
    if count % ranks:
        raise InputError(f"rollout.prompts_per_round = {count} for {ranks} processes; give a multiple of {ranks}")


def check_differ(settings: TrainSettings, backbone: Any, walk: Walk) -> None:
    """Raises InputError when all images of a prompt would be one: they begin with the same noise and no step has any.

    Only the loaded model knows which steps are random.
    """
    rollout = settings.rollout
    if not rollout.shared_noise or rollout.per_prompt == 1:
        return
    random = draws_noise(backbone.pipe.scheduler, walk.sampler) if walk.sampler else noisy_steps(backbone.process, walk)
    if random:
        return
    low, high = walk.random_times
    cause = f"random_times = {low:g} {high:g}" if walk.eta else "eta = 0"
    if walk.sampler:
        cause = f"sampler = {rollout.sampler!r}"
    raise InputError(
        f"rollout.{cause} leaves no step random, so with rollout.shared_noise all {rollout.per_prompt} images of a "
        "prompt are the same one; give --rollout.no-shared-noise"
    )
