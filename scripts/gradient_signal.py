"""How much of a method's gradient is signal: the agreement of gradients from different images.

    python scripts/gradient_signal.py configs/ddpo/shapes_sd.toml --rounds 8
    python scripts/gradient_signal.py configs/ddpo/shapes_sd.toml --rounds 8 --rollout.times 0.6 1.0

Takes a preset and flags as `visfeedback train`, learns nothing, and computes the gradient of one optimizer step, as
often as --rounds says, at the same weights and each time from other images (fresh ones: another round; stored ones come
again where there are too few, which looks like signal). For gradients g_i = s + noise_i the mean of g_i . g_j over i <
j is an unbiased estimate of |s|^2, the mean of |g_i|^2 one of |s|^2 + |noise|^2. Their ratio is the share of signal;
noise falls with the number of images, so a share c of n images becomes one half with n (1 - c) / c; n counts images
that are learned from, not those that a filter drops. The interval is a jackknife's over rounds. A fresh LoRA has a
gradient in its second factor alone; give --model.adapter to ask elsewhere. --json FILE keeps the numbers.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visfeedback.cli import train
from visfeedback.cli.console import Console, calm
from visfeedback.plugins import InputError
from visfeedback.training.run import Run
from visfeedback.training.setup import Setup, prepare
from visfeedback.types.files import write_json

Z95 = 1.96


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", type=Path)
    parser.add_argument("--rounds", type=int, default=8, help="gradients that are compared, 3 or more")
    parser.add_argument("--json", type=Path)
    options, flags = parser.parse_known_args()
    console = Console()
    calm(console, False)
    try:
        found = ask(options.preset, flags, options.rounds, console)
    except InputError as error:
        console.error(str(error))
        return 2
    if options.json:
        write_json(options.json, found)
    print(sentence(found))
    return 0


def ask(preset: Path, flags: list[str], rounds: int, console: Console) -> dict[str, Any]:
    """The measure as a table. Raises InputError for wrong settings."""
    if rounds < 3:
        raise InputError(f"--rounds {rounds}: expected 3 or more, or nothing can be said of the spread")
    with tempfile.TemporaryDirectory() as folder:
        settings = train._parse(preset, [*flags, "--out", folder])[0]
        setup, began = prepare(settings, Run(Path(folder)), False, console.progress), time.perf_counter()
        per_round = getattr(setup.stepper.batches, "per_round", 0) or 1
        found, images = [], 0.0
        for step in range(0, rounds * per_round, per_round):
            found.append(gradient(setup, step))
            images += setup.source.counts(step + 1)["images_seen"] - setup.source.counts(step)["images_seen"]
        gradients = torch.stack(found)
    return {
        "preset": str(preset), "flags": flags, "rounds": rounds, "images": images / rounds, "steps_apart": per_round,
        **shares(gradients), "seconds": time.perf_counter() - began,
    }  # fmt: skip


def gradient(setup: Setup, step: int) -> Tensor:
    """(parameters,) of one optimizer step, float64; weights and the method's memory of scores stay as they are.

    Raises InputError when it is no number.
    """
    stepper = setup.stepper
    before = deepcopy(stepper.state)
    for micro in range(stepper.batches.calls):
        stepper.backward(step, micro)
    found = torch.cat([p.grad.flatten().double().cpu() for p in setup.backbone.parameters() if p.grad is not None])
    stepper.optimizer.zero_grad()
    stepper.state.clear()
    stepper.state.update(before)
    if not found.isfinite().all():
        raise InputError(f"the gradient of step {step + 1} is no number; try --model.dtype fp32")
    scaler = stepper.accelerator.scaler
    return found / (scaler.get_scale() if scaler is not None else 1.0)


def shares(gradients: Tensor) -> dict[str, float]:
    """(R, parameters) -> the share of signal and its interval, and the mean norm. Raises InputError for zeros."""
    products = gradients @ gradients.T
    if not products.diagonal().all():
        raise InputError("a gradient is zero: nothing in its images was better than the rest; take more images a step")
    value, count = float(share(products)), len(products)
    without = torch.stack([share(products[rows][:, rows]) for rows in leave_one_out(count)])
    spread = Z95 * math.sqrt((count - 1) / count * float((without - without.mean()).square().sum()))
    return {
        "share": value, "low": value - spread, "high": value + spread,
        "norm": float(products.diagonal().sqrt().mean()),
    }  # fmt: skip


def share(products: Tensor) -> Tensor:
    """Mean product of two different gradients over the mean square of one."""
    count, own = len(products), products.diagonal().sum()
    return (products.sum() - own) / (count - 1) / own


def leave_one_out(count: int) -> list[list[int]]:
    return [[row for row in range(count) if row != left] for left in range(count)]


def sentence(found: dict[str, Any]) -> str:
    share, low, high, images = found["share"], found["low"], found["high"], found["images"]
    at_least, about = (images * max(0.0, 1 - value) / value if value > 0 else math.inf for value in (high, share))
    return (
        f"share of signal in the gradient of {images:.0f} images: {share:.3f} ({low:.3f} to {high:.3f}, "
        f"{found['rounds']} rounds, norm {found['norm']:.2g}); half would be with about {about:,.0f} "
        f"images, at least {at_least:,.0f}; {found['seconds']:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
