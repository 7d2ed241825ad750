"""Pages of a finished run for people: card.md, a model card, and report.html.

May import: types, config, plugins, backbones, report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from visfeedback import config, plugins
from visfeedback.backbones.sources import CHECKPOINTS
from visfeedback.report.blocks import Card, Cards, Command, Number, Section
from visfeedback.report.curves import training_curves
from visfeedback.report.grids import before_after
from visfeedback.report.page import Page, write_page
from visfeedback.report.tables import flat, settings_table
from visfeedback.training.monitor import drawn, preview_prompts
from visfeedback.training.run import public, read_metrics
from visfeedback.training.setup import Setup

TAIL = 20
"""rows of metrics.jsonl whose mean stands in the summary: single steps are noisy"""
CURVES = ("loss", "reward", "watched_reward", "implicit_accuracy", "drift")
"""of those that the run has"""
SHOWN = ("steps", "epochs", "images_seen", "loss", "implicit_accuracy", "holdout_implicit_accuracy", "drift", "seed")
"""numbers on the card"""

CARD = """---
base_model: {base}
library_name: diffusers
pipeline_tag: text-to-image
tags: [lora, text-to-image, {name}, preference-optimization, visfeedback]
---

# {name} adapter for {base}

A LoRA for `{base}` trained with {name} on {learned}, by visfeedback.

```python
import torch
from diffusers import {pipeline}
{imports}
pipe = {pipeline}.{opened}({source}, dtype=torch.float32)
pipe.load_lora_weights("adapter")
```

| | |
|---|---|
{rows}

Command: `{command}`

Settings:

```toml
{toml}```

What the numbers are: means over the last {tail} logged steps of training; drift is the mean squared
difference between the predictions of this model and its reference, {drift}.{holdout}
They do not say how good the images are: for that, `visfeedback evaluate` compares base and tuned on prompts that were
not trained on.
"""


def card(setup: Setup, summary: dict[str, Any]) -> str:
    """card.md, a model card."""
    settings, base = public(setup.settings), setup.settings.model.id
    world, measured = plugins.split_reference(base), summary["measured_on"]
    single = not world and base.endswith(CHECKPOINTS)  # only the pipeline's own class opens a single file
    return CARD.format(
        pipeline=type(setup.backbone.pipe).__name__ if single else "DiffusionPipeline",
        opened="from_single_file" if single else "from_pretrained",
        base=base, name=summary["method"]["name"], learned=setup.source.learned, command=summary["command"], tail=TAIL,
        imports=f"from visfeedback import {world[0]}\n" if world else "",
        source=f'{world[0]}.model_folder("{world[1]}")' if world else json.dumps(base),
        drift=on_images(measured["drift"]),
        holdout=f" Held-out numbers: {on_pairs(measured['holdout'])}." if "holdout" in measured else "",
        rows="\n".join(f"| {name.replace('_', ' ')} | {summary[name]} |" for name in SHOWN if name in summary),
        toml=config.to_toml(settings),
    )  # fmt: skip


def on_images(measured: dict[str, int]) -> str:
    """``on 16 training images of 12 prompts``."""
    return f"on {measured['images']} training images of {measured['prompts']} prompts"


def on_pairs(measured: dict[str, int]) -> str:
    """``64 pairs of 40 prompts that were not trained on``."""
    return f"{measured['pairs']} pairs of {measured['prompts']} prompts that were not trained on"


def write_report(setup: Setup, summary: dict[str, Any]) -> Path:
    """report.html: numbers, curves, pictures before and after, settings, the command."""
    sections = [Section("How it learned", (training_curves(read_metrics(setup.run.metrics), CURVES),))]
    if cards := _pictures(setup, summary["steps"]):
        lead = "The same prompt and the same noise, before and after. A handful of pictures shows style, not success."
        sections.append(Section("Before and after", (Cards(tuple(cards)),), lead))
    sections.append(Section("Run it again", (Command(summary["command"]),)))
    lead = "What differs from the defaults; `config.toml` has everything, `environment.json` the versions."
    sections.append(Section("Settings", (settings_table(_chosen(setup)),), lead))
    title = f"{summary['method']['name'].upper()} on {summary['model']}: {setup.source.learned}"
    page = Page(title, sections, "visfeedback train", _sentence(summary), _numbers(summary))
    return write_page(setup.run.report, page)


def _sentence(summary: dict[str, Any]) -> str:
    beta = ", ".join(f"{name.replace('_', ' ')} = {value:.4g}" for name, value in summary["conventions"].items())
    over = f" over {summary['epochs']:g} epochs of {summary['pairs']} pairs" if "pairs" in summary else ""
    stopped = f" Stopped early: {summary['stopped']}." if "stopped" in summary else ""
    return (
        f"{summary['steps']} steps{over} in {summary['seconds']:.0f} seconds, seed {summary['seed']}."
        f"{f' {beta}.' if beta else ''}{stopped}"
    )


def _numbers(summary: dict[str, Any]) -> tuple[Number, ...]:
    numbers, measured = list[Number](), summary["measured_on"]
    if "implicit_accuracy" in summary:
        note = f"training pairs, mean of the last {TAIL} logged steps; 50% is chance"
        numbers.append(Number("Pairs ranked right", f"{summary['implicit_accuracy']:.0%}", note=note))
    if "holdout_implicit_accuracy" in summary:
        value = f"{summary['holdout_implicit_accuracy']:.0%}"
        numbers.append(Number("Held-out pairs ranked right", value, note=on_pairs(measured["holdout"])))
    for name, note in (("reward", "what was trained for"), ("watched_reward", "only watched")):
        if name in summary:
            note = f"{note}; mean of the last {TAIL} logged steps"
            numbers.append(Number(name.replace("_", " ").capitalize(), f"{summary[name]:.3g}", note=note))
    if "drift" in summary:
        note = f"mean squared difference to the reference's predictions, {on_images(measured['drift'])}"
        numbers.append(Number("Drift", f"{summary['drift']:.2g}", note=note))
    numbers.append(Number("Peak memory", f"{summary['peak_mib']} MiB"))
    return tuple(numbers)


def _pictures(setup: Setup, last: int) -> list[Card]:
    """Of prompts that were drawn both before and after: what is drawn may change when a run goes on."""
    before, after = drawn(setup.run, 0), drawn(setup.run, last)
    cards: list[Card] = []
    for prompt in preview_prompts(setup):
        files = [pictures[prompt] for pictures in (before, after) if prompt in pictures]
        if len(files) == 2:
            base, tuned = (Image.open(file).convert("RGB") for file in files)
            cards.append(before_after(prompt, base, tuned))
    return cards


def _chosen(setup: Setup) -> dict[str, Any]:
    """What differs from the defaults."""
    kind: Any = type(setup.settings)  # of this method, whose defaults fill every section
    default = dict(flat(kind().model_dump(mode="json")))
    chosen = flat(public(setup.settings).model_dump(mode="json"))
    return {key: value for key, value in chosen if value != default[key] or key == "method.name"}
