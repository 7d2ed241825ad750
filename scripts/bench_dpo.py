"""Our Diffusion-DPO step against the usual script's: seconds, memory and FLOPs, after checking that both agree.

    python scripts/bench_dpo.py                              # the embedded model, CPU
    python scripts/bench_dpo.py --random sd15 --device cuda  # Stable Diffusion 1.5's networks, random weights

The usual script is `PlainStep` in _plain_dpo.py: VAE and text encoder in the loop, a second pass with the adapters
disabled for the reference, winner and loser stacked into one call, no gradient where none is needed. In its favour, its
images are decoded and its captions tokenized beforehand. Ours is the training loop's own step: with no table, with each
table by itself, with all, and with all while the pairs of a prompt share their noise (then an image in several pairs is
evaluated once; the usual script takes the same pairs one by one). All share one network, optimizer settings, data,
batch and precision; they take turns, and medians are shown. Filling the tables is timed, and counted in where epochs
are. A run whose (pair, noise) never repeat has no table of the reference, which then runs in the step: so do its rows
here, and with --draws 0 no step reads the reference from a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy
import torch
from _plain_dpo import PlainStep, random_pipeline
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from visfeedback.methods.dpo import denoising_errors
from visfeedback.training.run import Run
from visfeedback.training.settings import TrainSettings, settings_for
from visfeedback.training.setup import Setup, make_batches, prepare
from visfeedback.training.step import Stepper
from visfeedback.training.tables import Worker
from visfeedback.types.memory import host_peak_mib
from visfeedback.types.protocols import silent

TABLES = ("moments", "text", "reference")
VARIANTS: dict[str, tuple[str, ...]] = {
    "no table": (),
    "moments": ("moments",),
    "text": ("text",),
    "reference": ("reference",),
    "moments + text": ("moments", "text"),
    "moments + text + group": ("moments", "text", "group"),
    "all tables": TABLES,
    "all tables + group": (*TABLES, "group"),
}
"""our step with which tables, and with the pairs of a prompt sharing noise and evaluations (data.group)"""
ALL = ("all tables", "all tables + group")
PLAIN = "usual script"
EPOCHS = (1, 5, 20)
WARM_UP = 2
NEVER = lambda: False  # noqa: E731


def main() -> None:
    options = parse()
    if options.measure_memory:
        print(json.dumps(memory_of(options, options.measure_memory)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-dpo-") as scratch:
        bench = Bench(options, Path(scratch))
        result = {"options": vars(options), "device": bench.device_name, "torch": torch.__version__,
                  "threads": torch.get_num_threads()}  # fmt: skip
        result["parity"] = bench.parity()
        result["tflop"] = bench.flops()
        result["fill_seconds"] = bench.fill()
        result["step_seconds"] = bench.times()
        result["memory_mib"] = {name: child_memory(options, bench.model, name) for name in (PLAIN, *ALL)}
    result |= totals(result, options)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2, default=str) + "\n")
    show(result, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes:sd", help="hub id, diffusers folder or shapes:sd")
    parser.add_argument("--random", choices=("sd15", "tiny"), help="random weights of this size instead of --model")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the frozen weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--images", type=int, default=4, help="images of a prompt; all pairs among them are learned")
    parser.add_argument("--batch", type=int, default=12, help="pairs in a step")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--draws", type=int, default=4, help="noise draws of a pair before they repeat; 0 = one an epoch"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", help="JSON file for the numbers")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    return parser.parse_args()


# data and model


def make_model(options: argparse.Namespace, folder: Path) -> str:
    """The model's name for our settings; random networks are written to ``folder`` first."""
    if not options.random:
        return options.model
    target = folder / f"random-{options.random}"
    if not target.exists():
        random_pipeline(options.random).save_pretrained(target)
    return str(target)


def make_pairs(folder: Path, options: argparse.Namespace, side: int) -> Path:
    """Noise images, and all pairs among those of a prompt: what they show changes no time."""
    random, rows = numpy.random.default_rng(0), []
    for i in range(options.prompts):
        names = [f"{i}-{k}.png" for k in range(options.images)]
        for name in names:
            Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=numpy.uint8)).save(folder / name)
        prompt = f"a red circle and {i} blue squares"
        rows += [{"prompt": prompt, "image_a": a, "image_b": b, "label": "a"} for a, b in combinations(names, 2)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs_of(options: argparse.Namespace) -> int:
    """How many pairs there are."""
    return options.prompts * options.images * (options.images - 1) // 2


def make_settings(options: argparse.Namespace, model: str, pairs: Path, name: str) -> TrainSettings:
    """Steps enough for all epochs that are asked about, so that as many draws are filled as they use."""
    steps, parts = EPOCHS[-1] * pairs_of(options) // options.batch, VARIANTS.get(name, ())
    tables = {table: table in parts for table in TABLES}
    engine = {"device": options.device, "threads": torch.get_num_threads(), "checkpoint_every": 0, "drift_every": 0}
    return settings_for("dpo").model_validate({
        "model": {"id": model, "dtype": options.dtype}, "method": {"name": "dpo", "beta": 2000.0},
        "data": {"pairs": str(pairs), "group": "group" in parts}, "lora": {"rank": options.rank},
        "optim": {"batch_size": options.batch, "steps": steps, "lr": 1e-5},
        "engine": {**engine, "cache": {**tables, "draws": options.draws}},
        "eval": {"count": 0},
    })  # fmt: skip


def side_of(model: str) -> int:
    """Side of the model's images, px."""
    from visfeedback.backbones.load import load

    return load(model, device="cpu").resolution


# measuring


@dataclass
class Bench:
    """Both sides on one network."""

    options: argparse.Namespace
    folder: Path

    def __post_init__(self) -> None:
        self.model = make_model(self.options, self.folder)
        self.side = side_of(self.model)
        self.pairs = make_pairs(self.folder, self.options, self.side)
        self.setup = self._prepare("no table")
        self.device = self.setup.backbone.device
        cuda = self.device.type == "cuda"
        self.device_name = torch.cuda.get_device_name(self.device) if cuda else "cpu"
        self.list = self.setup.stepper.batches.pairs
        parameters = list(self.setup.backbone.parameters())
        with torch.no_grad():  # away from the reference, so that agreeing is not trivial
            generator = torch.Generator().manual_seed(1)
            for parameter in parameters:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
        self.plain = PlainStep(self.setup.backbone.pipe, list(self.list), self.side, 2000.0,
                               self.setup.stepper.optimizer, parameters)  # fmt: skip

    def _prepare(self, name: str) -> Setup:
        settings = make_settings(self.options, self.model, self.pairs, name)
        return prepare(settings, Run(self.folder / "run"), False, silent)

    def worker(self, name: str, cache: str) -> Worker:
        accelerator = self.setup.accelerator
        settings = make_settings(self.options, self.model, self.pairs, name)
        return Worker(settings, self.setup.backbone, self.folder / cache, silent, accelerator.autocast,
                      accelerator.wait_for_everyone)  # fmt: skip

    def stepper(self, name: str, cache: str = "cache") -> Stepper:
        """Our step with these tables; those that are in the folder ``cache`` already are not filled again."""
        batches, _ = make_batches(self.worker(name, cache), self.list)
        old = self.setup.stepper
        return Stepper(old.settings, old.accelerator, old.backbone, old.loss, old.optimizer, batches, {})

    def parity(self) -> dict[str, dict[str, float]]:
        """Loss of both sides on the same pairs, noise, times and latent noise. Ends the program when they disagree."""
        found = {name: self._agree(name) for name in ("no table", "all tables", "all tables + group")}
        exact = self.options.dtype == "fp32"
        # Latents and texts of a table were computed in batches of another shape, and groups are smaller ones, so their
        # last bits differ, and beta/2 multiplies that: there the errors themselves must agree.
        same = found["no table"]["difference"] <= (1e-6 if exact else 1e-2)
        if not same or any(row["of errors"] > (1e-6 if exact else 1e-2) for row in found.values()):
            raise SystemExit(f"the two sides disagree, so nothing is timed: {found}")
        return found

    @torch.no_grad()
    def _agree(self, name: str) -> dict[str, float]:
        stepper, backbone = self.stepper(name, "cache-of-parity"), self.setup.backbone
        batches = stepper.batches
        items = [batches.at(i) for i in range(self.options.batch)]
        rows = [self.list.index(pair) for pair, _ in items]
        batch = batches.collate(items).to(self.device)
        draws = [batches.draw(pair, index, batch.noise.shape[1:]) for pair, index in items]
        latent_noise = torch.stack([d.winner for d in draws] + [d.loser for d in draws]).to(self.device)
        step = backbone.process.index(batch.t)
        plain = self.plain.loss(rows, batch.noise, step, latent_noise).item()
        ours = self.setup.settings.method.loss(backbone, batch, stepper.context(0, 0))[0].item()
        latents, states = self.plain.encode(rows, latent_noise), self.plain.embed(rows)
        errors = self.plain.errors(latents, states, batch.noise.repeat(2, 1, 1, 1), step.repeat(2)).view(2, -1).T
        apart = (errors - denoising_errors(backbone, batch)).abs().max().item()
        return {PLAIN: plain, "ours": ours, "difference": abs(plain - ours), "of errors": apart}

    def flops(self) -> dict[str, float]:
        """TFLOP of each stage for one batch."""
        rows = list(range(self.options.batch))
        latents, states = self.plain.encode(rows), self.plain.embed(rows)
        noise = torch.randn_like(latents)
        index = torch.full((len(latents),), 500, device=self.device)

        def backward() -> None:
            self.plain.errors(latents, states, noise, index).sum().backward()
            self.plain.optimizer.zero_grad()

        def forward() -> None:
            with torch.no_grad(), self.setup.backbone.weights("reference"):
                self.plain.errors(latents, states, noise, index)

        stages = {"vae encode": lambda: self.plain.encode(rows), "text encode": lambda: self.plain.embed(rows),
                  "policy forward + backward": backward, "reference forward": forward}  # fmt: skip
        counted = {name: count(stage) for name, stage in stages.items()}
        usual, policy = sum(counted.values()), counted["policy forward + backward"]
        batch = self.stepper("all tables + group").batches.batch(0)
        assert batch.same is not None
        shared = len(batch.same.unique()) / batch.same.numel()  # images evaluated, of those in the pairs
        return counted | {"usual step": usual, "policy alone": policy, "policy alone, grouped": policy * shared}

    def fill(self) -> dict[str, float]:
        """Seconds to fill each table for all pairs; the reference's for every draw, if 20 epochs repeat any."""
        parts = {"moments": "moments", "text": "text", "reference": "all tables",  # the others are there by then
                 "reference, grouped": "all tables + group"}  # fmt: skip
        return {
            part: clock(self.device, lambda name=name: self.stepper(name, "filled")) for part, name in parts.items()
        }

    def times(self) -> dict[str, dict[str, float]]:
        """Median and least seconds of a step, all taking turns."""
        runs: dict[str, Callable[[int], Any]] = {PLAIN: lambda i: self.plain.step(self._rows(i))}
        for name in VARIANTS:
            stepper = self.stepper(name)
            runs[name] = lambda i, stepper=stepper: stepper.step(i, NEVER)
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for i in range(WARM_UP + self.options.repeats):
            for name, run in runs.items():
                seconds = clock(self.device, lambda run=run, i=i: run(i))
                if i >= WARM_UP:
                    taken[name].append(seconds)
        return {name: {"median": statistics.median(t), "min": min(t)} for name, t in taken.items()}

    def _rows(self, step: int) -> list[int]:
        return [(step * self.options.batch + i) % len(self.list) for i in range(self.options.batch)]


def count(stage: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        stage()
    return counter.get_total_flops() / 1e12


def clock(device: torch.device, work: Callable[[], Any]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory_of(options: argparse.Namespace, name: str) -> dict[str, float]:
    """Peak of this process over three steps, MiB; filling of tables included."""
    imported = host_peak_mib()
    with tempfile.TemporaryDirectory(prefix="bench-dpo-") as scratch:
        folder = Path(scratch)
        pairs = make_pairs(folder, options, side_of(options.model))
        settings = make_settings(options, options.model, pairs, name)
        setup = prepare(settings, Run(folder / "run"), False, silent)
        if name == PLAIN:
            stepper = setup.stepper
            plain = PlainStep(setup.backbone.pipe, list(stepper.batches.pairs), setup.backbone.resolution, 2000.0,
                              stepper.optimizer, list(setup.backbone.parameters()))  # fmt: skip
            for _ in range(3):
                plain.step(list(range(options.batch)))
        else:
            for step in range(3):
                setup.stepper.step(step, NEVER)
    cuda = torch.cuda.is_available() and setup.backbone.device.type == "cuda"
    return {
        "peak": torch.cuda.max_memory_allocated() / 2**20 if cuda else host_peak_mib(),
        "imports": 0.0 if cuda else imported,
    }


def child_memory(options: argparse.Namespace, model: str, name: str) -> dict[str, float]:
    """`memory_of` in a process of its own, for a process's peak never falls."""
    same = {key: getattr(options, key) for key in ("dtype", "device", "prompts", "images", "batch", "rank", "draws")}
    flags = [part for key, value in same.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, __file__, "--model", model, *flags, "--measure-memory", name]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# the tables at the end


def totals(result: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of whole trainings, tables filled from nothing, and how near the steps come to the counted limit. With
    no more epochs than draws nothing repeats, and the reference runs in the step."""
    steps, fill = pairs_of(options) / options.batch, result["fill_seconds"]
    seconds = {name: value["median"] for name, value in result["step_seconds"].items()}
    kinds = {"all tables": ("moments + text", "reference", "policy alone"),
             "all tables + group": ("moments + text + group", "reference, grouped",
                                    "policy alone, grouped")}  # fmt: skip
    found: dict[str, Any] = {}
    for name, (live, reference, limit) in kinds.items():
        epochs = {}
        for n in EPOCHS:
            repeats = 0 < options.draws < n
            once = fill["moments"] + fill["text"] + (fill[reference] if repeats else 0.0)
            plain, ours = n * steps * seconds[PLAIN], once + n * steps * seconds[name if repeats else live]
            epochs[n] = {PLAIN: plain, "ours": ours, "speed-up": plain / ours}
        counted, measured = result["tflop"]["usual step"] / result["tflop"][limit], seconds[PLAIN] / seconds[name]
        found[name] = {"epochs": epochs, "step speed-up": measured, "counted limit": counted,
                       "reached": measured / counted}  # fmt: skip
    return {"totals": found}


def show(result: dict[str, Any], options: argparse.Namespace) -> None:
    model = f"random {options.random}" if options.random else options.model
    print(f"\n{model}, {options.dtype}, {result['device']}, {result['threads']} threads; {pairs_of(options)} pairs of "
          f"{options.prompts} prompts x {options.images} images, {options.batch} pairs a step, rank {options.rank}, "
          f"{options.draws or 'always new'} draws; median of {options.repeats}, interleaved")  # fmt: skip
    print("\nloss on the same pairs, noise and times      usual         ours   difference  largest of an error")
    for name, row in result["parity"].items():
        print(
            f"  {name:<36}{row[PLAIN]:>12.8f} {row['ours']:>12.8f} {row['difference']:>12.1e} {row['of errors']:>12.1e}"
        )
    print("\nTFLOP a step, counted")
    for name, value in result["tflop"].items():
        print(f"  {name:<28}{value:.4f}")
    print("\nseconds a step                 median      min   speed-up")
    base = result["step_seconds"][PLAIN]["median"]
    for name, value in result["step_seconds"].items():
        print(f"  {name:<28}{value['median']:>7.4f}  {value['min']:>7.4f}  {base / value['median']:>6.2f}x")
    print("\nseconds to fill, once: " + ", ".join(f"{k} {v:.2f}" for k, v in result["fill_seconds"].items()))
    for name, total in result["totals"].items():
        print(f"\n{name}: a step is {total['step speed-up']:.2f}x faster, {total['reached']:.0%} of the counted limit "
              f"{total['counted limit']:.2f}x; whole trainings, filling included:")  # fmt: skip
        for epochs, row in total["epochs"].items():
            print(f"  {epochs:>3} epochs: usual {row[PLAIN]:.1f} s, ours {row['ours']:.1f} s: {row['speed-up']:.2f}x")
    print("\npeak memory of the process, MiB (GPU: of the device); in brackets what imports alone take")
    for name, value in result["memory_mib"].items():
        print(f"  {name:<28}{value['peak']:>7.0f} ({value['imports']:.0f})")


if __name__ == "__main__":
    main()
