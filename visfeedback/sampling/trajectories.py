"""Denoising paths on disk: ``trajectories/<sample id>.safetensors`` beside the samples.jsonl that lists the images.

A file holds latents (T + 1, C, h, w), t (T + 1), log_prob (T) when the path was drawn, and reference_log_prob (T); how
it was drawn (guidance, eta, random_times) is in its metadata. The log-probabilities are those of the stored, perhaps
rounded, path. May import: types, plugins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import Walk
from visfeedback.types.files import write_atomic

FOLDER = "trajectories"


def trajectory_file(root: Path, sample: str) -> Path:
    return root / FOLDER / f"{sample}.safetensors"


def write_trajectory(root: Path, sample: str, tensors: Mapping[str, Tensor], walk: Walk) -> Path:
    """Write the path of a sample, drawn as ``walk`` says, beside the list in ``root``."""
    known = {name: tensor.contiguous() for name, tensor in tensors.items()}
    low, high = walk.random_times
    about = {"guidance": repr(walk.guidance), "eta": repr(walk.eta), "random_times": f"{low!r} {high!r}"}
    return write_atomic(trajectory_file(root, sample), save(known, about))


def read_trajectory(root: Path, sample: str) -> tuple[dict[str, Tensor], Walk]:
    """Tensors, and how they were drawn. Raises InputError when the file is missing or damaged."""
    file = trajectory_file(root, sample)
    if not file.is_file():
        raise InputError(f"no {file}: the image's denoising path was not kept, so it cannot be learned from")
    try:
        with safe_open(str(file), "pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            low, high = map(float, about.get("random_times", "0 1").split())  # absent from the files of 0.1
            walk = Walk(len(tensors["t"]) - 1, float(about["guidance"]), float(about["eta"]), (low, high))
            return tensors, walk
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{file} is damaged: {str(error).splitlines()[0]}") from None


def stack(paths: list[dict[str, Tensor]], name: str) -> Tensor:
    """One tensor of all paths, first axis the paths."""
    return torch.stack([path[name] for path in paths])
