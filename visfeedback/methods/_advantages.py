"""How much better an image is than was to be expected: scores minus a mean, over a spread.

Black et al. 2023 (DDPO) keep the last scores of every prompt and use the whole batch's statistics until there are
enough; Shao et al. 2024 (GRPO) compare with the other images of the same prompt and round. Equal scores are exactly 0,
and the rest is computed in double precision: in single the mean of equal scores near 20 is off by 1e-6, which EPSILON
would make an advantage of 1. Pure functions of tensors and of a state that is saved in checkpoints. May import: types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
"""keeps a spread of 0 from dividing"""


def by_batch(scores: Tensor) -> Tensor:
    """(N,) minus their mean, over their standard deviation; exactly 0 where all are equal."""
    return _standard(scores, scores)


def by_group(scores: Tensor, group: Tensor, spread: str = "group") -> Tensor:
    """(N,) minus the mean of the group; over the group's standard deviation, the whole ``batch``'s, or ``none``.

    Exactly 0 for all images of a group in which all scores are equal.
    """
    given, scores = scores.dtype, scores.double()
    numbers = group.unique(return_inverse=True)[1]
    count = torch.bincount(numbers).to(scores)
    centred = scores - (torch.zeros_like(count).index_add_(0, numbers, scores) / count)[numbers]
    differs = torch.zeros(len(count)).index_add_(0, numbers, (scores != _first(scores, numbers)).float())[numbers] > 0
    if spread == "group":
        variance = torch.zeros_like(count).index_add_(0, numbers, centred.square()) / count
        centred = centred / (variance.sqrt()[numbers] + EPSILON)
    elif spread == "batch":
        centred = centred / (scores.std(correction=0) + EPSILON)
    return torch.where(differs, centred, torch.zeros_like(centred)).to(given)


def by_prompt(scores: Tensor, prompts: Sequence[str], seen: dict[str, list[float]], keep: int, least: int) -> Tensor:
    """(N,) by what each prompt's images got so far, these included: its last ``keep`` scores, which go into ``seen``.

    A prompt with fewer than ``least`` is compared with the whole batch instead. Exactly 0 where all are equal.
    """
    for prompt, score in zip(prompts, scores.tolist(), strict=True):
        seen[prompt] = [*seen.get(prompt, []), score][-keep:]
    found = by_batch(scores)
    for prompt in set(prompts):
        if len(seen[prompt]) >= least:
            past = torch.tensor(seen[prompt], dtype=torch.float64)
            own = torch.tensor([p == prompt for p in prompts])
            found[own] = _standard(scores[own], past)
    return found


def prompt_memory(state: dict[str, Any], name: str) -> dict[str, list[float]]:
    """The scores by prompt in a state."""
    return state.setdefault(name, {})


def _standard(scores: Tensor, among: Tensor) -> Tensor:
    """(N,) minus the mean of ``among`` (M,), over its standard deviation; 0 where all of both are one number."""
    exact, among = scores.double(), among.double()
    if bool((torch.cat([exact, among]) == exact[0]).all()):
        return torch.zeros_like(scores)
    return ((exact - among.mean()) / (among.std(correction=0) + EPSILON)).to(scores.dtype)


def _first(scores: Tensor, numbers: Tensor) -> Tensor:
    """(N,) the score of the first image of each image's group."""
    rows = torch.arange(len(numbers))
    first = rows.new_full((int(numbers.max()) + 1,), len(numbers)).scatter_reduce(0, numbers, rows, "amin")
    return scores[first[numbers]]
