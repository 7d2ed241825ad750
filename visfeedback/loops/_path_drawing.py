"""Images with their denoising paths, written to a folder: what people look at, and what is learned from what they say.

``FOLDER/samples.jsonl``, ``images/`` and ``trajectories/``. The paths carry their log-probabilities under the policy
that drew them and under the reference, which never change, so later stages need no reference network.
May import everything but app and cli.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from visfeedback.plugins import InputError
from visfeedback.sampling.generate import derive_seed
from visfeedback.sampling.render import evaluating
from visfeedback.sampling.rollout import Paths, Walk, noisy_steps, path_log_probs, roll
from visfeedback.sampling.samples import SAMPLES
from visfeedback.sampling.trajectories import trajectory_file, write_trajectory
from visfeedback.types.batches import Rollouts
from visfeedback.types.files import append_jsonl, read_jsonl, write_atomic
from visfeedback.types.records import Prompt, Sample, image_id


@dataclass(frozen=True)
class Artist:
    """The policy, how it draws, and what samples should say about it."""

    backbone: Any
    walk: Walk
    adapter: str
    batch: int
    """images at once"""
    shared_noise: bool = False
    autocast: Callable[..., AbstractContextManager[Any]] = nullcontext
    """around the network calls, as training has it: else its ratios would not begin at 1"""


def draw_groups(
    artist: Artist, prompts: Sequence[Prompt], each: int, seed: int, folder: Path, advance: Callable[[int], None]
) -> list[Sample]:
    """``each`` images of every prompt; prompts that are listed already are kept. One list entry is whole or absent.

    Raises InputError when eta is 0, for such paths have no log-probabilities.
    """
    steps = noisy_steps(artist.backbone.process, artist.walk)
    if not steps:
        raise InputError("rollout.eta = 0 leaves no randomness to learn from; give --rollout.eta 1")
    there: dict[str, list[Sample]] = {}
    for sample in read_jsonl(folder / SAMPLES, Sample) if (folder / SAMPLES).exists() else []:
        there.setdefault(sample.prompt_id, []).append(sample)
    for prompt in prompts:
        if len(there.get(prompt.id, [])) < each:
            there[prompt.id] = _group(artist, prompt, each, seed, folder, steps)
            append_jsonl(folder / SAMPLES, there[prompt.id])
        advance(each)
    return [sample for prompt in prompts for sample in there[prompt.id][:each]]


def _group(artist: Artist, prompt: Prompt, each: int, seed: int, folder: Path, steps: Sequence[int]) -> list[Sample]:
    """All images of a prompt; files first, so that what is listed is there."""
    seeds = [derive_seed(seed, prompt.id, k) for k in range(each)]
    samples: list[Sample] = []
    for start in range(0, each, artist.batch):
        part = seeds[start : start + artist.batch]
        paths, reference, images = _draw(artist, prompt, part, derive_seed(seed, f"{prompt.id} start", 0), steps)
        for row, image in enumerate(images):
            sample = _sample(artist, prompt, start + row, part[row], image)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            write_atomic(folder / sample.path, buffer.getvalue())
            if not trajectory_file(folder, sample.id).is_file():
                tensors = {"latents": paths.latents[row], "t": paths.t, "log_prob": paths.log_prob[row],
                           "reference_log_prob": reference[row]}  # fmt: skip
                write_trajectory(folder, sample.id, tensors, artist.walk)
            samples.append(sample)
    return samples


@torch.no_grad()
def _draw(
    artist: Artist, prompt: Prompt, seeds: Sequence[int], start: int, steps: Sequence[int]
) -> tuple[Paths, torch.Tensor, list[Image.Image]]:
    """Paths, the reference's log-probabilities (B, T) of them, and the images."""
    backbone, walk, rows = artist.backbone, artist.walk, len(seeds)
    condition = backbone.encode_text([prompt.text] * rows)
    without = backbone.encode_text([prompt.negative] * rows) if walk.guidance > 1 else None
    starts = [start] * rows if artist.shared_noise else None
    with evaluating(backbone.pipe):
        with artist.autocast():
            paths = roll(backbone, condition, without, seeds, backbone.latent_shape, walk, starts)
            whole = Rollouts(
                latents=paths.latents, t=paths.t.expand(rows, -1), log_prob=paths.log_prob, condition=condition,
                scores=torch.zeros(rows), group=torch.zeros(rows, dtype=torch.long), weight=torch.ones(rows),
                unconditional=without, guidance=walk.guidance, eta=walk.eta,
            )  # fmt: skip
            with backbone.weights("reference"):
                reference = path_log_probs(backbone, whole, steps)
        pixels = backbone.decode(paths.images.to(backbone.device))
    array = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return paths, reference, [Image.fromarray(image) for image in array]


def _sample(artist: Artist, prompt: Prompt, k: int, seed: int, image: Image.Image) -> Sample:
    backbone, walk = artist.backbone, artist.walk
    return Sample(
        id=image_id(image.width, image.height, image.tobytes()), prompt_id=prompt.id, prompt=prompt.text,
        negative=prompt.negative, category=prompt.category, path=f"images/{prompt.id}-{k}.png", width=image.width,
        height=image.height, model=backbone.model, revision=backbone.revision, adapter=artist.adapter, seed=seed,
        steps=walk.steps, guidance=walk.guidance, sampler=backbone.process.sampler,
        call={"eta": walk.eta, **_unusual(artist)},
    )  # fmt: skip


def _unusual(artist: Artist) -> dict[str, Any]:
    """What a stock pipeline's call cannot say."""
    random_times = artist.walk.random_times
    return {
        **({"shared_noise": True} if artist.shared_noise else {}),
        **({"random_times": list(random_times)} if random_times != (0, 1) else {}),
    }
