"""Looking at the run from beside: drift from the reference, held-out pairs, pictures. Changes nothing it looks at.

May import: types, sampling.
"""

from __future__ import annotations

import io
from functools import cached_property

import torch

from visfeedback.sampling.drift import drift
from visfeedback.sampling.generate import derive_seed
from visfeedback.sampling.render import GenerateSettings, evaluating, render
from visfeedback.training.policy import unparked
from visfeedback.training.setup import HELD_OUT_DRAWS, Setup
from visfeedback.types.batches import Pairs
from visfeedback.types.files import write_atomic

PROBE = 16
"""images on which the drift is measured"""
HELD_OUT = 64
"""held-out pairs that are looked at"""


class Monitor:
    """What is measured beside the loss; only the first process measures."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def after(self, step: int) -> dict[str, float]:
        """Measures that are due when ``step`` steps are done; always at the last one."""
        settings = self.setup.settings
        every, last = settings.engine.drift_every, step == settings.optim.steps
        if not self.setup.main:
            return {}
        if last or (settings.eval.every and step % settings.eval.every == 0):
            self.preview(step)
        return self.measure() if last or (every and step % every == 0) else {}

    def measure(self) -> dict[str, float]:
        """Drift, and loss and accuracy on held-out pairs; the same noise every time, so that values compare."""
        backbone, accelerator = self.setup.backbone, self.setup.accelerator
        with torch.no_grad(), evaluating(backbone.pipe), accelerator.autocast():
            return {"drift": self._drift()} | self._held_out()

    def _drift(self) -> float:
        generator = torch.Generator().manual_seed(derive_seed(self.setup.settings.engine.seed, "drift", 0))
        draws = max(1, PROBE // len(self._probe.t))
        return drift(self.setup.backbone, self._probe.winner, self._probe.condition, generator, draws)

    @cached_property
    def _probe(self) -> Pairs:
        """Training images of the first pairs, as many as fit a training batch."""
        batches = self.setup.stepper.batches
        count = min(PROBE, 2 * batches.recipe.batch_size)
        return batches.collate([(pair, 0) for pair in batches.pairs[:count]], reference=False).to(
            self.setup.backbone.device
        )

    def _held_out(self) -> dict[str, float]:
        setup, batches = self.setup, self.setup.held_out
        if batches is None:
            return {}
        size = batches.recipe.batch_size
        items = [(pair, draw) for draw in range(HELD_OUT_DRAWS) for pair in batches.pairs[:HELD_OUT]]
        totals: dict[str, float] = {}
        for start in range(0, len(items), size):
            part = items[start : start + size]
            batch = batches.collate(part).to(setup.backbone.device)
            loss, metrics = setup.settings.method.loss(setup.backbone, batch, setup.stepper.context(0, 0))  # pyright: ignore[reportAttributeAccessIssue]
            for name, value in {"loss": float(loss), **metrics}.items():
                totals[name] = totals.get(name, 0.0) + value * len(part) / len(items)
        names = ("loss", "implicit_accuracy")
        return {f"holdout_{name}": totals[name] for name in names if name in totals}

    def preview(self, step: int) -> None:
        """``samples/step-N/NN.png``: the same prompts and seeds every time."""
        setup = self.setup
        prompts = preview_prompts(setup)
        if not prompts or not setup.main:
            return
        seeds = [derive_seed(setup.settings.engine.seed, prompt, 0) for prompt in prompts]
        batch = GenerateSettings().batch_size
        with setup.progress("drawing previews", len(prompts)) as advance, unparked(setup.backbone):
            for start in range(0, len(prompts), batch):
                part = slice(start, start + batch)
                images = render(setup.backbone.pipe, prompts[part], seeds[part], settings=GenerateSettings())
                for number, image in enumerate(images, start):
                    buffer = io.BytesIO()
                    image.save(buffer, "PNG")
                    write_atomic(setup.run.samples / f"step-{step}" / f"{number:02d}.png", buffer.getvalue())
                advance(len(images))


def preview_prompts(setup: Setup) -> list[str]:
    """What is drawn: the prompts of the settings, else the first ones of the data."""
    wanted = setup.settings.eval
    if wanted.prompts:
        return list(wanted.prompts)
    return list(dict.fromkeys(pair.prompt for pair in setup.stepper.batches.pairs))[: wanted.count]
