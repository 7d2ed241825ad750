"""Looking at the run from beside: drift from the reference, held-out data, pictures. Changes nothing it looks at, and
looks at what will be saved: with a running average, at that.

May import: types, sampling.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visfeedback.sampling.drift import drift
from visfeedback.sampling.generate import derive_seed
from visfeedback.sampling.render import GenerateSettings, evaluating, render
from visfeedback.training.policy import averaged, unparked
from visfeedback.training.run import Run
from visfeedback.training.setup import Setup
from visfeedback.types.files import write_atomic, write_json

PROMPTS = "prompts.json"
"""beside previews: their prompts, in the order of the pictures"""


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
        """Drift, and what the source measures on held-out data; the same noise every time, so that values compare."""
        backbone, accelerator = self.setup.backbone, self.setup.accelerator
        looking = averaged(backbone, self.setup.stepper.average)
        with looking, torch.no_grad(), evaluating(backbone.pipe), accelerator.autocast():
            return {"drift": self._drift()} | self.setup.source.measure(self._loss)

    def _drift(self) -> float:
        backbone = self.setup.backbone
        generator = torch.Generator().manual_seed(derive_seed(self.setup.settings.engine.seed, "drift", 0))
        latents, condition, draws = self.setup.source.probe()
        return drift(backbone, latents.to(backbone.device), condition.to(backbone.device), generator, draws)

    def _loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        method: Any = self.setup.settings.method
        backbone, context = self.setup.backbone, self.setup.stepper.context(0, 0)
        return method.loss(backbone, batch.to(backbone.device), context)

    def preview(self, step: int) -> None:
        """``samples/step-N/NN.png``: the same prompts and seeds every time."""
        setup = self.setup
        prompts = preview_prompts(setup)
        if not prompts or not setup.main:
            return
        seeds = [derive_seed(setup.settings.engine.seed, prompt, 0) for prompt in prompts]
        batch = GenerateSettings().batch_size
        folder = setup.run.samples / f"step-{step}"
        looking = averaged(setup.backbone, setup.stepper.average)
        with setup.progress("drawing previews", len(prompts)) as advance, unparked(setup.backbone), looking:
            for start in range(0, len(prompts), batch):
                part = slice(start, start + batch)
                images = render(setup.backbone.pipe, prompts[part], seeds[part], settings=GenerateSettings())
                for number, image in enumerate(images, start):
                    buffer = io.BytesIO()
                    image.save(buffer, "PNG")
                    write_atomic(folder / f"{number:02d}.png", buffer.getvalue())
                advance(len(images))
        write_json(folder / PROMPTS, prompts)


def preview_prompts(setup: Setup) -> list[str]:
    """What is drawn: the prompts of the settings, else the first ones of the data."""
    wanted = setup.settings.eval
    if wanted.prompts:
        return list(wanted.prompts)
    return list(setup.source.prompts)[: wanted.count]


def drawn(run: Run, step: int) -> dict[str, Path]:
    """Prompt -> picture of the previews of ``step``; empty when there are none."""
    folder = run.samples / f"step-{step}"
    if not (folder / PROMPTS).is_file():
        return {}
    prompts = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))
    return {prompt: folder / f"{number:02d}.png" for number, prompt in enumerate(prompts)}
