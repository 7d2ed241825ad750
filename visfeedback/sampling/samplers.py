"""Which scheduler draws: the pipeline's own, or another one that diffusers declares compatible with it.

Names are those of diffusers without their endings: DDIMScheduler is ``ddim``, EulerDiscreteScheduler is ``euler``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from visfeedback.plugins import InputError, nearest

ALIASES = {"dpm++2m": "dpmsolver", "dpm++": "dpmsolver", "eulera": "eulerancestral"}
"""names that other programs use"""

RANDOM = {"DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"}
"""those whose steps draw noise as diffusers sets them up"""

UNSEEDED = "DPMSolverSDEScheduler"  # draws its noise from a source of its own, not from the image's generator


@contextmanager
def use_sampler(pipe: Any, name: str) -> Iterator[None]:
    """Inside the block the pipeline draws with this scheduler; an empty name leaves it as it is.

    Raises InputError, naming the nearest, for one that does not fit the pipeline.
    """
    before = pipe.scheduler
    pipe.scheduler = sampler(before, name)
    try:
        yield
    finally:
        pipe.scheduler = before


def sampler(scheduler: Any, name: str) -> Any:
    """The scheduler of this name on the noise schedule of ``scheduler``."""
    kind = sampler_class(scheduler, name)
    if kind is type(scheduler):
        return scheduler
    parameters = inspect.signature(kind.__init__).parameters
    unset = "clip_sample" in parameters and "clip_sample" not in scheduler.config
    # The default of clip_sample is for pixels; latents reach far beyond [-1, 1].
    return kind.from_config(scheduler.config, **({"clip_sample": False} if unset else {}))


def draws_noise(scheduler: Any, name: str) -> bool:
    """Whether steps of this sampler are random, so that images which begin with the same noise differ."""
    made = sampler(scheduler, name)
    return type(made).__name__ in RANDOM or str(made.config.get("algorithm_type", "")).startswith("sde")


def sampler_class(scheduler: Any, name: str) -> type:
    """The class that ``name`` means: ``ddim``, ``DDIMScheduler``, or empty for the scheduler's own."""
    if not name:
        return type(scheduler)
    kinds = [kind for kind in scheduler.compatibles if kind.__name__ != UNSEEDED]
    known = {_short(kind.__name__): kind for kind in [*kinds, type(scheduler)]}
    wanted = _short(name)
    wanted = ALIASES.get(wanted, wanted)
    if wanted not in known:
        raise InputError(f"no sampler {name!r} for this model{nearest(wanted, known)}")
    return known[wanted]


def _short(name: str) -> str:
    plain = name.removesuffix("Scheduler").replace("Discrete", "").replace("Multistep", "").lower()
    return "".join(c for c in plain if c.isalnum() or c == "+")
