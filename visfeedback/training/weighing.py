"""From native scores of a whole set of images to scores as the settings normalise them, and to the method's weights.

Rewards are put on one scale, mixed and distrusted in ``rewards/mix.py``, by numbers that are fixed: a score must not
depend on who else is scored. Here it shall: the images of a set are compared, or those of a prompt with earlier ones,
by the methods' own advantages, so that `normalise` and a method's weights are one arithmetic. Methods cannot import
rewards; that (s - mean) / std is the same in both places is tested. May import: types, plugins, methods.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visfeedback.methods._advantages import by_batch, by_prompt, prompt_memory
from visfeedback.methods._weights import NothingToLearn
from visfeedback.plugins import InputError
from visfeedback.training.scorer import Unscored
from visfeedback.training.settings import TrainSettings

KEEP, LEAST = 32, 16
"""scores of a prompt that `reward.normalise = "prompt"` keeps, and needs"""


def weighed(
    settings: TrainSettings, native: Tensor, group: Tensor, prompts: Sequence[str], state: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """(N,) scores as the settings normalise them, and (N,) weights that the method gives them.

    A set from which the method learns nothing is passed over with weights of 0, once an earlier one taught something
    (``state["scores_differ"]``). Raises Unscored when all scores have always been the same and the method compares
    them, and what the method raises when it finds nothing in the first set.
    """
    compares = getattr(settings.method, "compares", True)
    if compares and len(native) > 1 and bool((native == native[0]).all()) and not state.get("scores_differ"):
        raise Unscored(
            f"{settings.reward.name or 'the score'} gave {native[0]:g} to all of {len(native)} images, so nothing can "
            "be learned from it; choose another --reward.name, or prompts that the model does not always get alike"
        )
    later = copy.deepcopy(state)  # what fails leaves no trace, for the round is drawn again
    scores = native
    if settings.reward.normalise == "batch":
        scores = by_batch(native)
    elif settings.reward.normalise == "prompt":
        scores = by_prompt(native, prompts, prompt_memory(later, "scores_by_prompt"), KEEP, LEAST)
    weigh = getattr(settings.method, "weigh", None)
    try:
        weight = scores if weigh is None else weigh(scores, group, list(prompts), later)
    except NothingToLearn:
        if not state.get("scores_differ"):
            raise
        weight, later["metrics"] = torch.zeros_like(scores), {}  # those of the round before are not this one's
    if weight.shape != scores.shape or not bool(weight.isfinite().all()):
        raise InputError(f"the weights that the method made of {len(scores)} scores are no numbers; look at the reward")
    state.update(later, scores_differ=True)
    return scores, weight.float()
