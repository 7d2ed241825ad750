"""A vision-language model's rating of an image against its prompt, 1 to 5, read from the text that it writes.

For models of the UnifiedReward family (Wang et al. 2025, arXiv 2503.05236) and any other that can rate: asked through
an endpoint or with weights on this machine, greedily, up to 512 tokens. Variants:

- ``final``: the number after ``Final Score:``;
- ``alignment``, ``coherence``, ``style``: one of the three ratings that the 2.0 models give, ``acs``: their mean.

The instructions are the models' own, Copyright (c) 2025 Yibin Wang, MIT licence: `unifiedreward_final.txt` that of the
first models, `unifiedreward_acs.txt` that of the 2.0 models. Another one goes into a text file with ``{}`` in the place
of the prompt: ``unifiedreward:final=FILE@...``. Images go at their own size (Flow-GRPO makes them 512x512 first) and
scores are not divided by 5. An answer without a number is a failure, not a zero. May import: types, vlm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from visfeedback import vlm
from visfeedback.plugins import InputError, nearest
from visfeedback.rewards._asked import HOW, PAIRS_AT_ONCE, Failures, read_template, score_pairs, with_template
from visfeedback.rewards._rgb import PREPROCESSING, rgb_bytes
from visfeedback.types.records import About
from visfeedback.vlm import Question, Reply, Vlm

MAX_TOKENS = 512
FINAL, ACS = (
    (Path(__file__).parent / f"unifiedreward_{name}.txt").read_text(encoding="utf-8").rstrip("\n")
    for name in ("final", "acs")
)
AXES = ("Alignment", "Coherence", "Style")
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "final": (FINAL, ("Final",)),
    "acs": (ACS, AXES),
    **{axis.lower(): (ACS, (axis,)) for axis in AXES},
}
"""Variant -> instruction, and the ratings whose mean is the score."""

ABOUT = About(
    measures="rating from 1 to 5 that a vision-language model writes about image and prompt",
    typical="1 to 5",
    accuracy={"MMRB2": 59.8},
    accuracy_source="MMRB2 README, UnifiedReward with Qwen2.5-VL-7B",
    licence="MIT (UnifiedReward); the model's own",
    paper="arXiv 2503.05236",
    extra="vlm",
    variants=tuple(VARIANTS),
)
USAGE = "unifiedreward@MODEL"
"""It has no weights of its own to fall back on."""


class UnifiedReward:
    """Reward protocol around a ``Vlm``. ``failures``: pairs of the last ``combine`` without a score, and why."""

    range = (1.0, 5.0)
    differentiable = False
    reads_prompt = True
    preprocessing = PREPROCESSING
    encoder = "pixels"
    pairs_at_once = PAIRS_AT_ONCE

    def __init__(self, model: Vlm, variant: str = "final", instruction: str = "", name: str = "unifiedreward") -> None:
        ours, self._ratings = VARIANTS[variant]
        self.name = name
        self.origin = with_template(model.origin, instruction or ours, ours)
        self.failures: Failures = {}
        self._model = model
        self._instruction = instruction or ours

    def preprocess(self, image: Image.Image) -> Tensor:
        """(3, H, W) uint8: the model's own processor, or the endpoint, resizes."""
        return rgb_bytes(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) uint8, unchanged: the model reads image and instruction together."""
        return pixels

    def encode_texts(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix; NaN where the answer holds no rating.

        Raises InputError when the endpoint cannot be asked at all.
        """
        scores, self.failures = score_pairs(images, texts, pairing, self._instruction, self._answer)
        return scores

    def _answer(self, questions: list[Question]) -> list[float | str]:
        return [self._score(reply) for reply in self._model.ask(questions, MAX_TOKENS)]

    def _score(self, reply: Reply) -> float | str:
        if reply.error:
            return reply.error
        found = {rating: read_rating(reply.text, rating) for rating in self._ratings}
        missing = [rating for rating, value in found.items() if value is None]
        if missing:
            end = " ".join(reply.text.split())[-80:]
            return f"no {missing[0]} Score from 1 to 5 in the answer, which ends with {end!r}"
        return sum(value for value in found.values() if value is not None) / len(found)


def read_rating(text: str, rating: str) -> float | None:
    """The last ``Final Score: 3.5`` (``Alignment Score (1-5): 2``, ``**Style Score:** 4/5``) of an answer.

    None when there is none, or when it is not from 1 to 5.
    """
    number = r"[\s*:]*:[\s*]*(\d+(?:\.\d+)?)"
    found = re.findall(rf"\b{rating}(?:\s+Score)?\**(?:\s*\(1\s*-\s*5\))?{number}", text, re.IGNORECASE)
    value = float(found[-1]) if found else 0.0
    return value if 1 <= value <= 5 else None


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> UnifiedReward:
    """``unifiedreward[:VARIANT[=FILE]]@MODEL``; ``FILE`` holds an instruction, ``{}`` in the place of the prompt.

    MODEL is ``MODEL@http://host:8000/v1``, ``local:FOLDER`` or a hub id. Raises InputError for another variant and as
    ``vlm.connect`` does.
    """
    kind, _, file = variant.partition("=")
    if kind and kind not in VARIANTS:
        raise InputError(f"unifiedreward has no variant {kind!r}{nearest(kind, VARIANTS)}")
    if not path:
        raise InputError(
            f"unifiedreward needs a vision-language model; write --reward unifiedreward@MODEL, where MODEL is {HOW}"
        )
    instruction = read_template(file, "unifiedreward") if file else ""
    name = f"unifiedreward:{variant}" if variant else "unifiedreward"
    return UnifiedReward(vlm.connect(path, device, dtype), kind or "final", instruction, name)
