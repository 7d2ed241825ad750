"""``vf.fabric``: a with-block in which ordinary pipeline calls follow liked and disliked images.

The block puts our processors on the self-attention layers and a forward pre-hook on the denoiser. The hook is needed
because a processor sees neither the timestep nor which rows are which branch; it patches nothing, sees each call before
it runs, and goes when the block ends, however it ends. May import: types, torch.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from visfeedback.plugins import InputError
from visfeedback.sampling.fabric import families
from visfeedback.sampling.fabric.adapters import Watch
from visfeedback.sampling.fabric.bank import Bank, Layers
from visfeedback.sampling.fabric.latents import encode, noise_of, noised, shares
from visfeedback.sampling.fabric.plan import Part, make_plan, side
from visfeedback.sampling.fabric.processors import FabricProcessor
from visfeedback.sampling.fabric.references import Reference, read_reference, read_references
from visfeedback.sampling.fabric.schedule import strength_at
from visfeedback.sampling.fabric.seen import Arguments, Family, Seen, Text, conditions, device_of
from visfeedback.sampling.fabric.settings import FabricSettings, settings_of
from visfeedback.sampling.fabric.weighting import Injection

STATES = 8
"""Different weights whose passes are kept side by side: weights in training never come back."""


def fabric(
    pipe: Any,
    liked: Any = (),
    disliked: Any = (),
    *,
    generator: torch.Generator | None = None,
    allow_urls: bool = False,
    family: Family | None = None,
    **knobs: Any,
) -> FabricSession:
    """A session for ``with``: inside the block ``pipe(...)`` follows the images; outside it is as it was.

    ``liked`` and ``disliked``: paths, PIL images, addresses (with ``allow_urls``) or (image, weight) pairs.
    ``generator`` draws the seed of the references' noise; else ``seed`` says it. ``family`` is a module for networks
    that are not known (see ``visfeedback.sampling.fabric``). ``knobs`` are the fields of ``FabricSettings``.
    Raises InputError in one line for images, knobs or a pipeline that do not fit.
    """
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise InputError(f"generator is {type(generator).__name__}; expected one torch.Generator, or seed=0")
        knobs["seed"] = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    session = FabricSession(pipe, settings_of(knobs), allow_urls, family)
    session.liked.extend(read_references(liked, allow_urls))
    session.disliked.extend(read_references(disliked, allow_urls))
    return session


class FabricSession:
    """Liked and disliked images and what is kept of them. One session may be entered again and again.

    ``liked`` and ``disliked`` are lists that may be changed between calls of the pipeline.
    """

    def __init__(
        self, pipe: Any, settings: FabricSettings, allow_urls: bool = False, family: Family | None = None
    ) -> None:
        self.pipe, self.settings, self.allow_urls = pipe, settings, allow_urls
        self.liked: list[Reference] = []
        self.disliked: list[Reference] = []
        self.passes = 0
        """reference images that went through the denoiser so far"""
        self.family = families.find(pipe, family)
        budget = None if settings.budget_mib is None else settings.budget_mib * 2**20
        self.bank = Bank(settings.keep, settings.bits, budget)
        self._latents: dict[tuple[str, int, int, int], Tensor] = {}
        self._texts: dict[tuple[str, int, int], Text] = {}
        self._states: dict[int, None] = {}
        self._own: Text | None = None
        self._processors: dict[str, FabricProcessor] = {}
        self._layers: dict[str, Any] = {}
        self._memory: dict[str, Any] = {}
        self._run: Tensor | None = None
        self._said: tuple[Text, int] | None = None
        self._hook: Any = None
        self._inside = False
        self._full = False

    def like(self, image: Any, weight: float = 1.0) -> None:
        """One more liked image, for the calls that follow; also as (image, weight)."""
        self.liked.append(read_reference((read_reference(image, self.allow_urls), weight)))

    def dislike(self, image: Any, weight: float = 1.0) -> None:
        """One more disliked image."""
        self.disliked.append(read_reference((read_reference(image, self.allow_urls), weight)))

    def record(self) -> dict[str, Any]:
        """What drawn images should say about the references: JSON values that tell one way of drawing from another."""
        chosen = self.settings.model_dump(mode="json", exclude_defaults=True) | {"strength": self.settings.strength}
        return {"liked": _rows(self.liked), "disliked": _rows(self.disliked), **chosen}

    @property
    def denoiser(self) -> nn.Module:
        """The network, without the wrapper of ``torch.compile``."""
        part = getattr(self.pipe, self.family.PART)
        return getattr(part, "_orig_mod", part)

    def __enter__(self) -> FabricSession:
        self._layers = families.attention_layers(self.family, self.denoiser, self.settings.layers)
        self._memory, self._run = {}, None
        for name, layer in self._layers.items():
            self._processors[name] = self.family.Processor(layer.processor)
            layer.set_processor(self._processors[name])
        part = getattr(self.pipe, self.family.PART)
        self._hook = part.register_forward_pre_hook(torch.compiler.disable(self._before), with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()
        for name, layer in self._layers.items():
            ours = self._processors[name]
            if layer.processor is ours:  # not one that was put there inside the block
                layer.set_processor(ours.original)
        self._processors, self._layers, self._hook = {}, {}, None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Ahead of each pass of the denoiser: tell the processors what to attend to."""
        if self._inside:
            return
        for name, processor in self._processors.items():
            if self._layers[name].processor is not processor:
                raise InputError(
                    f"the attention processor of {name} was changed inside the fabric block; call "
                    "enable_attention_slicing, set_attn_processor and their like before `with`"
                )
            processor.injections = ()
        for references in (self.liked, self.disliked):
            if not all(isinstance(one, Reference) for one in references):  # put in by hand
                references[:] = [read_reference(one, self.allow_urls) for one in references]
        if (not self.liked and not self.disliked) or self.settings.strength == 0:
            return
        call = _signature(type(self.denoiser)).bind(self.denoiser, *args, **kwargs)
        arguments = dict(list(call.arguments.items())[1:])
        seen = self.family.see(self.pipe, arguments, self.settings, self._memory)
        self._begin()
        self._hear(seen, arguments)
        step = self._step(seen.timestep)
        strength = strength_at(step, len(self.pipe.scheduler.timesteps), self.settings)
        plan = make_plan(seen, strength, self.liked, self.disliked, self.settings)
        if any(part.toward or part.away for part in plan):
            self._inject(seen, arguments, step, plan)

    def _step(self, timestep: float) -> int:
        """Which of the scheduler's steps it is: also right where a call begins late, as image-to-image does."""
        return int((self.pipe.scheduler.timesteps.cpu().double() - timestep).abs().argmin())

    def _inject(self, seen: Seen, arguments: Arguments, step: int, plan: Sequence[Part]) -> None:
        needed = {ref.id: ref for part in plan for ref, _ in (*part.toward, *part.away)}
        size = self._size(seen)
        kept = self._recall(list(needed.values()), seen, arguments, step, size)
        ratio = seen.height * seen.width / (size[0] * size[1])  # a smaller reference weighs as much as a whole one
        placed = {ref: self._placed(layers, size, seen) for ref, layers in kept.items()}
        for name, processor in self._processors.items():
            processor.injections = tuple(
                Injection(
                    part.rows,
                    side(placed, name, part.toward, ratio),
                    side(placed, name, part.away, ratio),
                    self.settings.push,
                )
                for part in plan
            )
            self._say_tokens(processor, arguments)

    def _say_tokens(self, processor: FabricProcessor, arguments: Arguments) -> None:
        if hasattr(processor, "image_tokens"):
            processor.image_tokens = arguments["hidden_states"].shape[1]  # pyright: ignore[reportAttributeAccessIssue]

    def _placed(self, layers: Layers, size: tuple[int, int], seen: Seen) -> Layers:
        positions = self.settings.positions
        return {
            name: (self.family.place(self.denoiser, key, size, seen, positions), value)
            for name, (key, value) in layers.items()
        }

    def _size(self, seen: Seen) -> tuple[int, int]:
        """Height and width of the references' latents: even, as patches and halvings want."""
        scale = self.settings.reference_scale
        if scale == 1:
            return seen.height, seen.width
        return max(2, 2 * round(seen.height * scale / 2)), max(2, 2 * round(seen.width * scale / 2))

    def _begin(self) -> None:
        """Once for each call of the pipeline, known by its timesteps: what cannot change while it runs."""
        if self._run is not self.pipe.scheduler.timesteps:
            self._run, self._said, self._own = self.pipe.scheduler.timesteps, None, None
            self._weights, self._eye = Watch([self.denoiser]), Watch([self.pipe.vae]).fingerprint()
            self._latents = {key: value for key, value in self._latents.items() if key[-1] == self._eye}
            self._device = device_of(self.pipe)  # the pipeline walks through its networks for it
            self._times = {_time(t) for t in self.pipe.scheduler.timesteps.tolist()}

    @torch.no_grad()
    def _recall(
        self, needed: Sequence[Reference], seen: Seen, arguments: Arguments, step: int, size: tuple[int, int]
    ) -> dict[str, Layers]:
        """Keys and values of each reference, by its id: those that are kept, and the others computed now."""
        t = self.pipe.scheduler.timesteps[step - step % self.settings.stride]
        text, spoken = self._text(seen, arguments)
        scale = (arguments.get("cross_attention_kwargs") or arguments.get("joint_attention_kwargs") or {}).get("scale")
        device = self._device
        weights = self._weights.fingerprint()
        self._forget_beyond(weights)
        same = (weights, *size, self._eye, tuple(self._layers))
        rest = (_time(t), same, shares(self.pipe.scheduler, float(t)), spoken, scale, conditions(arguments))
        found = {ref.id: self.bank.get((ref.id, *rest), device) for ref in needed}
        missing = [ref for ref in needed if found[ref.id] is None]
        for start in range(0, len(missing), self.settings.reference_batch):
            batch = missing[start : start + self.settings.reference_batch]
            for ref, layers in zip(batch, self._record(batch, arguments, size, t.to(device), text), strict=True):
                found[ref.id] = self._keep((ref.id, *rest), layers, device)
        return {ref: layers for ref, layers in found.items() if layers is not None}

    def _forget_beyond(self, weights: int) -> None:
        """Of all but the weights used last nothing stays in memory, also without a budget."""
        self._states.pop(weights, None)
        self._states[weights] = None
        if len(self._states) > STATES:
            oldest = next(iter(self._states))
            del self._states[oldest]
            self.bank.drop_where(lambda key: key[2][0] == oldest)

    def _keep(self, key: tuple[Any, ...], layers: Layers, device: torch.device) -> Layers:
        current = {ref.id for ref in (*self.liked, *self.disliked)}

        def stale(old: Any) -> bool:
            """Of an image, a time, a size or weights that this call has no use for."""
            return old[0] not in current or old[1] not in self._times or old[2] != key[2]

        kept = self.bank.put(key, layers, stale)
        if not kept and self.settings.keep != "nothing" and not self._full:
            self._full = True
            warnings.warn(
                f"fabric: {self.settings.budget_mib:g} MiB hold {len(self.bank)} passes of references, the others are "
                "computed at each step; raise budget_mib, or give stride=2, bits=8 or reference_scale=0.5",
                stacklevel=2,
            )
        back = self.bank.get(key, device) if kept else None
        return self.bank.rounded(layers) if back is None else back

    def _record(
        self, batch: Sequence[Reference], arguments: Arguments, size: tuple[int, int], t: Tensor, text: Text
    ) -> list[Layers]:
        """Keys and values of some references in one pass of the denoiser."""
        clean = torch.cat([self._latent(ref, size).to(t.device) for ref in batch])
        when = float(t) if self.settings.noise == "fresh" else None
        noise = torch.cat([noise_of(ref.id, self.settings.seed, when, tuple(clean.shape[1:])) for ref in batch])
        sample = arguments.get("sample", arguments.get("hidden_states"))
        assert sample is not None, "every denoiser has an input"
        noisy = noised(self.pipe.scheduler, clean, noise, float(t)).to(sample.device, sample.dtype)
        call = self.family.reference_arguments(self.pipe, arguments, noisy, t.to(sample.device), text)
        with self._recording(call):
            getattr(self.pipe, self.family.PART)(**call)
            recorded = {name: processor.recorded for name, processor in self._processors.items()}
        self.passes += len(batch)
        return [
            {name: (pair[0][i : i + 1], pair[1][i : i + 1]) for name, pair in recorded.items() if pair is not None}
            for i in range(len(batch))
        ]

    @contextmanager
    def _recording(self, call: Arguments) -> Iterator[None]:
        """Processors record inside the block and forget what they recorded after it."""
        self._inside = True
        for processor in self._processors.values():
            processor.recording = True
            self._say_tokens(processor, call)
        try:
            yield
        finally:
            self._inside = False
            for processor in self._processors.values():
                processor.recording, processor.recorded = False, None

    def _latent(self, ref: Reference, size: tuple[int, int]) -> Tensor:
        key = (ref.id, *size, self._eye)
        if key not in self._latents:
            side = self.pipe.vae_scale_factor
            self._latents[key] = encode(self.pipe, ref.image, size[0] * side, size[1] * side)
        return self._latents[key]

    def _hear(self, seen: Seen, arguments: Arguments) -> None:
        """Keep the text of the drawn image: FLUX with true CFG comes with the negative text in a call of its own."""
        row = next((rows.start for branch, rows in seen.branches if branch == "positive"), None)
        if self.settings.prompt is None and row is not None:
            self._own = self.family.own_text(arguments, row)

    def _text(self, seen: Seen, arguments: Arguments) -> tuple[Text, int]:
        """The text of the reference passes, and a number that says which it is."""
        if self.settings.prompt is None:
            own = self.family.own_text(arguments, 0) if self._own is None else self._own
            return own, hash(tuple(value.float().cpu().numpy().tobytes() for value in own.values()))
        if self._said is None:
            self._said = self._given_text(self.settings.prompt, seen.text_tokens)
        return self._said

    def _given_text(self, prompt: str, tokens: int) -> tuple[Text, int]:
        encoders = [part for name, part in self.pipe.components.items() if name.startswith("text_encoder") and part]
        key = (prompt, tokens, Watch(encoders).fingerprint())
        if key not in self._texts:
            self._texts = {old: value for old, value in self._texts.items() if old[-1] == key[-1]}
            self._texts[key] = self.family.encode_text(self.pipe, prompt, tokens)
        return self._texts[key], hash(key)


@cache
def _signature(kind: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(kind.forward)


def _time(t: Any) -> float:
    return round(float(t), 4)


def _rows(refs: Sequence[Reference]) -> list[dict[str, Any]]:
    return [{"id": ref.id, "source": ref.source, "weight": ref.weight} for ref in refs]
