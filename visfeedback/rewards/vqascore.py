"""How likely a vision-language model says "Yes" to "does this figure show ...?", in [0, 1].

VQAScore (Lin et al. 2024, arXiv 2404.01291) with the question of t2v_metrics 3.1. The score is the probability of the
first word of the answer, which is not the same from

- weights on this machine: the softmax over the whole vocabulary of the raw logits at the first generated token, of
  exactly the token ``Yes`` (t2v_metrics reads the logits after the repetition penalty of the model's generation
  config, where it has one);
- an endpoint with log-probabilities: the sum over the spellings of yes (case, spaces) among the 20 likeliest first
  tokens; an upper bound where only no is among them, and no score where neither is.

Scores of one model through both differ by the spellings. Differences between models are larger: compare within one.
Left out: CLIP-FlanT5, the model of the paper (3.0), which transformers does not have. May import: types, vlm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from visfeedback import vlm
from visfeedback.plugins import InputError
from visfeedback.rewards._asked import HOW, PAIRS_AT_ONCE, Failures, read_template, score_pairs, with_template
from visfeedback.rewards._rgb import PREPROCESSING, rgb_bytes
from visfeedback.types.records import About
from visfeedback.vlm import Question, Vlm

TEMPLATE = 'Does this figure show "{}"? Please answer Yes or No.'

ABOUT = About(
    measures="probability that a vision-language model answers Yes when asked whether the image shows the prompt",
    typical="0 to 1, mostly near the ends",
    accuracy={"MMRB2": 58.3},
    accuracy_source="MMRB2 README, VQAScore with Qwen2.5-VL-7B",
    licence="Apache-2.0 (method); the model's own",
    paper="arXiv 2404.01291",
    extra="vlm",
)
USAGE = "vqascore@MODEL"
"""It has no weights of its own to fall back on."""


class VqaScore:
    """Reward protocol around a ``Vlm``. ``failures``: pairs of the last ``combine`` without a score, and why."""

    range = (0.0, 1.0)
    differentiable = False
    reads_prompt = True
    preprocessing = PREPROCESSING
    encoder = "pixels"
    pairs_at_once = PAIRS_AT_ONCE

    def __init__(self, model: Vlm, name: str = "vqascore", template: str = TEMPLATE) -> None:
        self.name = name
        self.origin = with_template(model.origin, template, TEMPLATE)
        self.failures: Failures = {}
        self._model = model
        self._template = template

    def preprocess(self, image: Image.Image) -> Tensor:
        """(3, H, W) uint8: the model's own processor, or the endpoint, resizes."""
        return rgb_bytes(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) uint8, unchanged: the model reads image and question together."""
        return pixels

    def encode_texts(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix; NaN where the model gave no answer.

        Raises InputError when the endpoint cannot be asked at all, or gives no log-probabilities.
        """
        scores, self.failures = score_pairs(images, texts, pairing, self._template, self._answer)
        return scores

    def _answer(self, questions: list[Question]) -> list[float | str]:
        replies = self._model.probability(questions, ("Yes", "No"))
        return [reply.error or reply.chances["Yes"] for reply in replies]


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> VqaScore:
    """``vqascore@local:FOLDER``, ``vqascore@owner/name`` or ``vqascore@MODEL@http://host:8000/v1``.

    The variant is a text file with another question, ``{}`` in the place of the prompt: ``vqascore:question.txt@...``.
    ``dtype`` is that of local weights (published: bf16). Raises InputError as ``vlm.connect`` does.
    """
    if not path:
        raise InputError(f"vqascore needs a vision-language model; write --reward vqascore@MODEL, where MODEL is {HOW}")
    template = read_template(variant, "vqascore") if variant else TEMPLATE
    return VqaScore(vlm.connect(path, device, dtype), f"vqascore:{variant}" if variant else "vqascore", template)
