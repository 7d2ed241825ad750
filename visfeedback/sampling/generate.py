"""Draw N images of each prompt into a folder: ``images/<prompt id>-<k>.png`` and samples.jsonl, again and again.

What is listed is kept and not made again, so a run that was killed goes on where it was. ``generate.json`` says how
the images are made: a folder never mixes models, seeds or settings. Processes of one launcher share the work; each
lists what it made in a file of its own, and the first one joins the lists. Others have to wait: one writer a folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from visfeedback.plugins import InputError
from visfeedback.sampling import hands
from visfeedback.sampling.crew import Crew
from visfeedback.sampling.render import GenerateSettings, render, resolve
from visfeedback.sampling.samples import SAMPLES
from visfeedback.types.files import append_jsonl, read_jsonl, write_atomic, write_json
from visfeedback.types.locks import only_writer
from visfeedback.types.protocols import Progress, silent
from visfeedback.types.records import Prompt, Sample, image_id

__all__ = ["GenerateSettings", "Job", "derive_seed", "generate", "plan", "render"]

RECIPE = "generate.json"
PART = ".samples-of-process-{}.jsonl"
"""what one of several processes has drawn; joined to the list by the first one"""


@dataclass(frozen=True)
class Job:
    """One image to draw."""

    prompt: Prompt
    k: int
    """which of the prompt's images, from 0"""
    seed: int

    @property
    def path(self) -> str:
        return f"images/{self.prompt.id}-{self.k}.png"


def derive_seed(seed: int, prompt_id: str, k: int) -> int:
    """The seed of the k-th image of a prompt, in 0 ... 2^53 - 1: exact in every JSON reader."""
    digest = hashlib.sha256(f"{seed}\0{prompt_id}\0{k}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 11


def plan(prompts: Sequence[Prompt], per_prompt: int, seed: int) -> list[Job]:
    """All images, prompt by prompt; a prompt that comes twice counts once. Raises InputError when there are none."""
    if not prompts or per_prompt < 1:
        raise InputError(f"nothing to draw: {len(prompts)} prompts, {per_prompt} images each; expected 1 or more")
    unique = {prompt.id: prompt for prompt in prompts}.values()
    return [Job(prompt, k, derive_seed(seed, prompt.id, k)) for prompt in unique for k in range(per_prompt)]


def generate(
    source: Any,
    prompts: Sequence[Prompt],
    per_prompt: int,
    seed: int,
    out: Path,
    settings: GenerateSettings | None = None,
    progress: Progress = silent,
    call: Mapping[str, Any] | None = None,
    crew: Crew | None = None,
    processes: int = 1,
) -> list[Sample]:
    """Draw what is missing in ``out`` and return the samples of these prompts in the order of ``plan``.

    ``source`` is a loaded pipeline, a backbone (both know their model, revision and adapter) or a bare pipeline.
    ``call``: JSON values about what else the images depend on, for ``Sample.call`` and the folder's recipe.
    ``crew``: the processes that draw together, all of which call this; those of the launcher when left out.
    ``processes``: on a Linux CPU so many draw side by side, a core each, at most as many as torch has threads; small
    models gain from it, and no image depends on it. A crew draws without copies.
    A batch's images are written first and listed after that: a killed run loses one batch of each process at most and
    lists no image twice; lists of several processes become one when all is drawn, and in the next run after a kill.
    Raises InputError when ``out`` holds images made otherwise or another process is drawing there, OSError when it
    cannot be written.
    """
    out, origin, crew = Path(out), Origin.of(source), crew or Crew.of_launcher()
    settings = resolve(settings or GenerateSettings(), origin.pipe)
    jobs = plan(prompts, per_prompt, seed)
    recipe = origin.recipe(settings, seed) | {"call": dict(call) if call else None}
    with ExitStack() as held:

        def begin() -> None:
            held.enter_context(only_writer(out))
            _check_recipe(out, recipe)
            _tidy(out, jobs)

        crew.first(begin)
        done = _listed(out)
        missing = [job for job in jobs if job.path not in done]
        mine, there = missing[crew.rank :: crew.size], len(jobs) - len(missing)
        with progress("drawing images", there + len(mine)) as advance:
            advance(there)
            if crew.size == 1 and processes > 1:
                mine = _side_by_side(processes, origin, mine, settings, call, out, advance)
            for samples in _drawn(origin, mine, settings, call, out):
                append_jsonl(out / (PART.format(crew.rank) if crew.size > 1 else SAMPLES), samples)
                advance(len(samples))
        if crew.size > 1:
            crew.meet()
            crew.first(lambda: _tidy(out, jobs))
        done = _listed(out)
    return [done[job.path] for job in jobs]


def _side_by_side(
    processes: int, origin: Origin, jobs: Sequence[Job], settings: GenerateSettings, call: Mapping[str, Any] | None,
    out: Path, advance: hands.Advance,
) -> Sequence[Job]:  # fmt: skip
    """Batches by several processes of this machine, each with a list of its own; returns what they left undone."""
    count = hands.processes(processes, torch.device(getattr(origin.pipe, "_execution_device", origin.pipe.device)))
    if count == 1:
        return jobs
    size, told = max(1, min(settings.batch_size, math.ceil(len(jobs) / count))), 0
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]

    def work(process: int, batch: Sequence[Job]) -> int:
        for samples in _drawn(origin, batch, settings, call, out):
            append_jsonl(out / PART.format(process), samples)
        return len(batch)

    def tell(more: int) -> None:
        nonlocal told
        told += more
        advance(more)

    try:
        hands.together(count, batches, work, tell)
    finally:
        _tidy(out, jobs)
    done = _listed(out)
    left = [job for job in jobs if job.path not in done]
    advance(len(jobs) - len(left) - told)  # a part that was given up halfway
    return left


def _drawn(
    origin: Origin, jobs: Sequence[Job], settings: GenerateSettings, call: Mapping[str, Any] | None, out: Path
) -> Iterator[list[Sample]]:
    """Batches of samples whose images have been written."""
    for batch, images in _batches(origin.pipe, jobs, settings):
        samples = [origin.sample(job, image, settings, call) for job, image in zip(batch, images, strict=True)]
        for sample, image in zip(samples, images, strict=True):
            write_atomic(out / sample.path, _png(image))
        yield samples


@dataclass(frozen=True)
class Origin:
    """A pipeline and what samples should say about it."""

    pipe: Any
    model: str
    revision: str
    adapter: str
    adapter_revision: str

    @classmethod
    def of(cls, source: Any) -> Origin:
        """Of a ``Loaded``, a backbone, or a bare pipeline, which knows at most its folder."""
        pipe = getattr(source, "pipe", source)
        folder = str(pipe.config.get("_name_or_path") or "")
        known = {name: getattr(source, name, "") for name in ("revision", "adapter", "adapter_revision")}
        return cls(pipe, getattr(source, "model", folder), **known)

    def recipe(self, settings: GenerateSettings, seed: int) -> dict[str, Any]:
        """All that an image depends on besides its prompt and number."""
        names = {name: getattr(self, name) for name in ("model", "revision", "adapter", "adapter_revision")}
        size = {"height": settings.height, "width": settings.width}
        precision = str(self.pipe.dtype).removeprefix("torch.")
        drawn = {"steps": settings.steps, "guidance": settings.guidance, "sampler": settings.sampler}
        return {**names, "seed": seed, **drawn, **size, "dtype": precision}

    def sample(
        self, job: Job, image: Image.Image, settings: GenerateSettings, call: Mapping[str, Any] | None = None
    ) -> Sample:
        prompt = job.prompt
        return Sample(
            id=image_id(image.width, image.height, image.tobytes()),
            prompt_id=prompt.id,
            prompt=prompt.text,
            negative=prompt.negative,
            category=prompt.category,
            path=job.path,
            width=image.width,
            height=image.height,
            model=self.model,
            revision=self.revision,
            adapter=self.adapter,
            seed=job.seed,
            steps=settings.steps,
            guidance=settings.guidance,
            sampler=settings.sampler,
            call=dict(call or {}),
        )


def _batches(
    pipe: Any, jobs: Sequence[Job], settings: GenerateSettings
) -> Iterator[tuple[Sequence[Job], list[Image.Image]]]:
    """Batches and their images; when memory runs out, the batch is halved for good."""
    size, start = settings.batch_size, 0
    while start < len(jobs):
        batch = jobs[start : start + size]
        try:
            images = _draw(pipe, batch, settings)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            size = len(batch) // 2
        else:
            yield batch, images
            start += len(batch)
            continue
        if size == 0:
            raise InputError("the device has no memory for a single image; give a smaller --height and --width")
        _free_memory()
        warnings.warn(f"out of memory with {len(batch)} images at once; going on with {size}", stacklevel=3)


def _draw(pipe: Any, batch: Sequence[Job], settings: GenerateSettings) -> list[Image.Image]:
    texts, negatives = [job.prompt.text for job in batch], [job.prompt.negative for job in batch]
    return render(pipe, texts, [job.seed for job in batch], settings=settings, negatives=negatives)


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has its own class; the CPU's allocator and MPS only a message."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _listed(out: Path) -> dict[str, Sample]:
    """Path -> sample of what is listed."""
    file = out / SAMPLES
    return {row.path: row for row in read_jsonl(file, Sample)} if file.exists() else {}


def _tidy(out: Path, jobs: Sequence[Job]) -> None:
    """One list: the lists of single processes join it in the order of ``jobs``, as if one had drawn them all, and rows
    whose image has been deleted leave it, to be made again."""
    for half in (out / "images").glob(".*.png.*"):  # of a process that was killed while it wrote
        half.unlink(missing_ok=True)
    file, parts = out / SAMPLES, sorted(out.glob(PART.format("*")))
    listed = list(read_jsonl(file, Sample)) if file.exists() else []
    place = {job.path: number for number, job in enumerate(jobs)}
    joining = [row for part in parts for row in read_jsonl(part, Sample)]
    joining.sort(key=lambda row: place.get(row.path, len(place)))
    kept = {row.path: row for row in (*listed, *joining) if (out / row.path).is_file()}
    if joining or len(kept) < len(listed):
        write_atomic(file, "".join(f"{row.model_dump_json()}\n" for row in kept.values()))
    for part in parts:
        part.unlink()


def _check_recipe(out: Path, recipe: dict[str, Any]) -> None:
    """Write how images are made in ``out``, or raise InputError naming the first difference to what is there."""
    file = out / RECIPE
    if not file.exists():
        if (out / SAMPLES).exists():
            raise InputError(
                f"{out} has a {SAMPLES} but no {RECIPE}: it was made by something else; give another --out"
            )
        write_json(file, recipe)
        return
    try:
        before = dict(json.loads(file.read_text()))
    except (ValueError, TypeError):
        raise InputError(f"{file} is damaged; give another --out") from None
    for key, value in recipe.items():
        if before.get(key) != value and not _same_content(key, before, recipe):
            raise InputError(
                f"{out} holds images made with {key} {before.get(key)!r}, now it is {value!r}; "
                "repeat the earlier setting or give another --out"
            )


def _same_content(key: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether only the name of a model or adapter changed: the revision says it is the same."""
    revision = {"model": "revision", "adapter": "adapter_revision"}.get(key, "")
    return bool(now.get(revision)) and before.get(revision) == now[revision]
