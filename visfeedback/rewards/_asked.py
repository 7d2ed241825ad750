"""What rewards that ask a vision-language model share: one question per image and prompt, and what became of it.

May import: types, vlm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.rewards._rgb import pictures
from visfeedback.types.records import Origin, text_id
from visfeedback.vlm import Question

Failures = dict[tuple[int, int], str]
"""(image, prompt) of one ``combine`` -> why it has no score, one line."""
PAIRS_AT_ONCE = 32
"""Questions of one call of ``combine`` in a scoring run: answers take seconds, or money, and are kept call by call."""
HOW = "local:FOLDER, owner/name of the hub, or MODEL@http://host:8000/v1"


def score_pairs(
    images: Tensor,
    texts: Sequence[str],
    pairing: Literal["paired", "matrix"],
    template: str,
    answer: Callable[[list[Question]], list[float | str]],
) -> tuple[Tensor, Failures]:
    """Scores, NaN where there is none, and why.

    Args:
        images: (N, 3, H, W) uint8.
        template: the question, ``{}`` in the place of the prompt.
        answer: questions -> a score each, or one line that says why there is none.
    """
    seen = pictures(images)
    pairs = [(i, j) for i in range(len(seen)) for j in ([i] if pairing == "paired" else range(len(texts)))]
    answers = answer([Question.about(template.replace("{}", texts[j]), seen[i]) for i, j in pairs])
    failures = {pair: said for pair, said in zip(pairs, answers, strict=True) if isinstance(said, str)}
    scores = torch.tensor([float("nan") if isinstance(said, str) else said for said in answers], dtype=torch.float32)
    return (scores if pairing == "paired" else scores.reshape(len(seen), len(texts))), failures


def read_template(file: str, what: str) -> str:
    """A question of the user's own. Raises InputError when the file is missing or has no ``{}``."""
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{what}: no text file {file}; expected a question with {{}} in the place of the prompt"
        ) from None
    if "{}" not in text:
        raise InputError(f"{what}: {path} has no {{}}; write it where the prompt belongs")
    return text


def with_template(origin: Origin, template: str, published: str) -> Origin:
    """The model's origin; a question of the user's own becomes part of its revision."""
    if template == published:
        return origin
    return origin.model_copy(update={"revision": f"{origin.revision}+question-{text_id(template)}".lstrip("+")})
