"""How well the text in an image matches the text that the prompt asks for, in [0, 1] (the OCR reward of Flow-GRPO).

The target is what stands between the first pair of double quotes in the prompt. Recognised text and target are
compared without spaces and in lower case: 1 when the target occurs in the text, else 1 - d / len(target) with the
edit distance d (Levenshtein) of target and whole text, cut at len(target).
Liu et al. 2025, arXiv 2505.05470, whose code reads with PaddleOCR 2; here RapidOCR reads (PP-OCRv6 small on
onnxruntime, Chinese and English, 32 MB, in the extra ``ocr``) and keeps lines with a confidence of 0.5 or more.
A prompt without quotes has no score; it fails with a reason instead of counting as 0. No gradient. May import: types.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.rewards._rgb import PREPROCESSING, pictures, rgb_bytes
from visfeedback.types.files import file_sha256
from visfeedback.types.records import About, Origin

TEXT_BYTES = 4096
"""Width of the features: recognised text in UTF-8, padded with zeros, cut where it is longer."""

UNASKED = 'the prompt has no text in "double quotes" that the image should show'
MAX_RATIO = 8  # of the sides of an image that the recogniser gets

ABOUT = About(
    measures='whether the image shows the text that stands in "double quotes" in the prompt',
    typical="0 to 1",
    licence="Apache-2.0",
    megabytes=31.7,
    paper="arXiv 2505.05470",
    extra="ocr",
)


class Ocr:
    """Reward protocol around RapidOCR. ``failures`` says which prompts of the last ``combine`` had no target."""

    name = "ocr"
    range = (0.0, 1.0)
    differentiable = False
    reads_prompt = True
    preprocessing = PREPROCESSING

    def __init__(self, engine: Any, origin: Origin) -> None:
        self.origin = origin
        self.encoder = f"rapidocr-{origin.revision}-{origin.checkpoint_sha256[:16]}"
        self.failures: dict[tuple[int, int], str] = {}
        self._engine = engine

    def preprocess(self, image: Image.Image) -> Tensor:
        """(3, H, W) uint8: the recogniser resizes."""
        return rgb_bytes(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 4096) uint8: the text of each image, its lines without a break between them."""
        return torch.stack([pack(self._read(image)) for image in pictures(pixels)])

    def encode_texts(self, prompts: Sequence[str]) -> list[str]:
        """The targets, squeezed; empty for a prompt that asks for no text."""
        return [squeezed(target(prompt)) for prompt in prompts]

    def unfit(self, prompt: str) -> str:
        """Why images of this prompt have no score; empty when they have one."""
        return "" if squeezed(target(prompt)) else UNASKED

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix; NaN where the prompt asks for no text."""
        read = [squeezed(unpack(row)) for row in images]
        self.failures = {}
        if pairing == "paired":
            return torch.tensor([self._score(i, i, *pair) for i, pair in enumerate(zip(read, texts, strict=True))])
        rows = [[self._score(i, j, text, wanted) for j, wanted in enumerate(texts)] for i, text in enumerate(read)]
        return torch.tensor(rows).reshape(len(read), len(texts))

    def _score(self, row: int, column: int, text: str, wanted: str) -> float:
        if not wanted:
            self.failures[row, column] = UNASKED
            return float("nan")
        return match(text, wanted)

    def _read(self, image: Image.Image) -> str:
        image = widened(image)
        found = self._engine(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))  # blue first, as OpenCV reads
        return "".join(getattr(found, "txts", None) or ())


def widened(image: Image.Image) -> Image.Image:
    """White is added below or on the right until no side is more than 8 times the other.

    RapidOCR enlarges the short side to 736 pixels: a strip of 1 x 500 would need a terabyte.
    """
    width, height = (max(side, math.ceil(max(image.size) / MAX_RATIO)) for side in image.size)
    if (width, height) == image.size:
        return image
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(image)
    return canvas


def target(prompt: str) -> str:
    """What stands between the first two double quotes; empty when there are not two."""
    parts = prompt.split('"', 2)
    return parts[1] if len(parts) == 3 else ""


def squeezed(text: str) -> str:
    """Lower case, without spaces."""
    return text.replace(" ", "").lower()


def match(text: str, wanted: str) -> float:
    """1 when ``wanted`` is in ``text``, else 1 - distance / length with the distance cut at the length."""
    if wanted in text:
        return 1.0
    return 1.0 - min(levenshtein(text, wanted), len(wanted)) / len(wanted)


def levenshtein(a: str, b: str) -> int:
    """How many letters must be put in, taken out or replaced to make ``b`` of ``a``."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (letter != other))
    return row[-1]


def pack(text: str) -> Tensor:
    """Text -> (4096,) uint8, UTF-8 padded with zeros; cut before the first letter that does not fit whole."""
    data = text.encode()[:TEXT_BYTES].decode(errors="ignore").encode()
    return torch.tensor([*data, *bytes(TEXT_BYTES - len(data))], dtype=torch.uint8)


def unpack(row: Tensor) -> str:
    return bytes(row.tolist()).rstrip(b"\0").decode()


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> Ocr:
    """``device`` and ``dtype`` are accepted and ignored: RapidOCR runs on the CPU.

    Raises InputError for a variant or path, and when RapidOCR or onnxruntime is missing.
    """
    if variant or path:
        raise InputError("ocr has no variants and brings its own weights; write --reward ocr")
    try:
        import onnxruntime  # noqa: F401  (RapidOCR itself only says so at the first image)
        from rapidocr import RapidOCR
    except ModuleNotFoundError as error:
        raise InputError(f"ocr needs {error.name}; type pip install 'visfeedback[ocr]'") from None
    import rapidocr

    engine = RapidOCR(
        params={
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
        }
    )
    files = sorted((Path(rapidocr.__file__).parent / "models").glob("*.onnx"))
    sha256 = hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()
    return Ocr(engine, Origin(model="rapidocr", revision=version("rapidocr"), checkpoint_sha256=sha256))
