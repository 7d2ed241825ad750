"""Seconds an image and peak memory of FABRIC, ours against the community port's algorithm on the same model.

    python scripts/bench_fabric.py --model shapes:sd --repeats 9
    python scripts/bench_fabric.py --random sd15 --dtype fp16 --device cuda --out numbers.json
    python scripts/bench_fabric.py --model shapes:sd --only choices        # what each way to need less memory costs

First both draw the same images; then they are timed, interleaved: a batch with a fixed number of references, ours with
an empty bank (its passes included) and with a full one; and rounds in each of which one liked and one disliked image
come on top. FLOPs are counted: they say how much faster it could be. Memory is that of processes of their own. Both act
at every step, with the same noise of the references.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _plain_dpo import random_pipeline
from _plain_fabric import plain_fabric
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from visfeedback.backbones.load import DTYPES, load_pipeline, pick_device
from visfeedback.sampling.fabric.session import fabric

STRENGTH, DISLIKE_SCALE = 0.8, 0.5
MEMORY = ("imports", "nothing", "port", "ours")


def main() -> None:
    options = parser().parse_args()
    if options.memory:
        print(json.dumps(memory(options)))
        return
    pipe = build(options)
    result = {
        "model": options.random or options.model, "device": str(pipe.device), "threads": torch.get_num_threads(),
        "batch": options.batch, "references": options.references, "steps": options.steps, "repeats": options.repeats,
    }  # fmt: skip
    for name, part in PARTS.items():
        if name in options.only:
            result[name] = part(pipe, options)
    del pipe
    if "memory_mib" in options.only:
        result["memory_mib"] = {name: measured(name) for name in MEMORY}
    show(result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="shapes:sd", help="of the Stable Diffusion 1 or 2 family")
    made.add_argument("--random", default="", choices=["", "tiny", "sd15"], help="random weights instead of a model")
    made.add_argument("--device", default="auto")
    made.add_argument("--dtype", default="fp32", choices=list(DTYPES))
    made.add_argument("--batch", type=int, default=4)
    made.add_argument("--references", type=int, default=4, help="half liked, half disliked")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--rounds", type=int, default=8)
    made.add_argument("--repeats", type=int, default=9)
    parts = [*PARTS, "memory_mib"]
    made.add_argument("--only", nargs="+", default=parts, choices=parts, help="parts of the benchmark; all by default")
    made.add_argument("--out", type=Path)
    made.add_argument("--memory", default="", choices=["", *MEMORY], help=argparse.SUPPRESS)
    return made


def build(options: argparse.Namespace) -> Any:
    if options.random:
        torch.manual_seed(0)
        pipe = random_pipeline(options.random).to(pick_device(options.device), DTYPES[options.dtype])
        pipe.set_progress_bar_config(disable=True)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.eval()
        return pipe
    return load_pipeline(options.model, dtype=options.dtype, device=options.device).pipe


def pictures(pipe: Any, count: int) -> list[Image.Image]:
    """References of the model's own size."""
    side, source = pipe.unet.config.sample_size * pipe.vae_scale_factor, np.random.default_rng(0)
    coarse = [source.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC) for values in coarse]


def draw(pipe: Any, options: argparse.Namespace) -> torch.Tensor:
    """Latents of a guided batch: the decoder costs the same for everybody and is left out."""
    generators = [torch.Generator("cpu").manual_seed(k) for k in range(options.batch)]
    return pipe("a red circle", num_images_per_prompt=options.batch, num_inference_steps=options.steps,
                guidance_scale=3.0, generator=generators, output_type="latent").images  # fmt: skip


def sides(refs: list[Image.Image]) -> dict[str, list[Image.Image]]:
    return {"liked": refs[0::2], "disliked": refs[1::2]}


def ours(pipe: Any, refs: list[Image.Image], **way: Any) -> Any:
    everywhere = {"strength": STRENGTH, "dislike_scale": DISLIKE_SCALE, "window": (0.0, 1.0), "cap": None}
    return fabric(pipe, **sides(refs), **everywhere, **way)


def port(pipe: Any, refs: list[Image.Image]) -> Any:
    return plain_fabric(pipe, **sides(refs), strength=STRENGTH, dislike_scale=DISLIKE_SCALE)


def parity(pipe: Any, options: argparse.Namespace) -> dict[str, float]:
    refs = pictures(pipe, options.references)
    plain = draw(pipe, options)
    with port(pipe, refs):
        expected = draw(pipe, options)
    with ours(pipe, refs):
        got = draw(pipe, options)
    largest = float(expected.abs().max())
    return {"largest latent": largest, "effect": float((expected - plain).abs().max()),
            "ours - port": float((got - expected).abs().max())}  # fmt: skip


def timed(pipe: Any, work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    if pipe.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def batch(pipe: Any, options: argparse.Namespace) -> dict[str, float]:
    """Medians, seconds an image."""
    refs, seconds = pictures(pipe, options.references), {name: [] for name in ("no feedback", "port", "empty", "full")}
    full = ours(pipe, refs)
    with full:
        draw(pipe, options)
    for _ in range(options.repeats):
        seconds["no feedback"].append(timed(pipe, lambda: draw(pipe, options)))
        for name, block in (("port", port(pipe, refs)), ("empty", ours(pipe, refs)), ("full", full)):
            with block:
                seconds[name].append(timed(pipe, lambda: draw(pipe, options)))
    return {name: statistics.median(values) / options.batch for name, values in seconds.items()}


def rounds(pipe: Any, options: argparse.Namespace) -> dict[str, list[float]]:
    """Medians, seconds of each round; the first has no references, each later one a like and a dislike more."""
    refs = pictures(pipe, 2 * options.rounds)
    seconds: dict[str, list[list[float]]] = {"port": [], "ours": []}
    for _ in range(options.repeats):
        session = ours(pipe, [])
        found: dict[str, list[float]] = {"port": [], "ours": []}
        for number in range(options.rounds):
            with port(pipe, refs[: 2 * number]):
                found["port"].append(timed(pipe, lambda: draw(pipe, options)))
            if number:
                session.like(refs[2 * number - 2])
                session.dislike(refs[2 * number - 1])
            with session:
                found["ours"].append(timed(pipe, lambda: draw(pipe, options)))
        for name, values in found.items():
            seconds[name].append(values)
    return {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in seconds.items()}


@torch.no_grad()
def counted(pipe: Any, options: argparse.Namespace) -> dict[str, float]:
    """GFLOP of a batch, and of all rounds."""
    refs, many = pictures(pipe, options.references), pictures(pipe, 2 * options.rounds)
    full = ours(pipe, refs)
    found = {"no feedback": gflop(lambda: draw(pipe, options))}
    for name, block in (("port", port(pipe, refs)), ("empty", full), ("full", full)):
        with block:
            found[name] = gflop(lambda: draw(pipe, options))
    session, totals = ours(pipe, []), {"port, all rounds": 0.0, "ours, all rounds": 0.0}
    for number in range(options.rounds):
        with port(pipe, many[: 2 * number]):
            totals["port, all rounds"] += gflop(lambda: draw(pipe, options))
        if number:
            session.like(many[2 * number - 2])
            session.dislike(many[2 * number - 1])
        with session:
            totals["ours, all rounds"] += gflop(lambda: draw(pipe, options))
    return found | totals


def gflop(work: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def choices(pipe: Any, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What each way to need less memory keeps, and how far it draws from the full bank: RMS difference of the latents
    over the RMS difference that the references make at all (0 = exact, 1 = as far as without references). The yardstick
    is ``seed=1``: the same references under other noise."""
    refs, plain = pictures(pipe, options.references), draw(pipe, options)
    ways: dict[str, dict[str, Any]] = {
        "full": {}, "keep=cpu": {"keep": "cpu"}, "bits=8": {"bits": 8}, "stride=2": {"stride": 2},
        "stride=4": {"stride": 4}, "reference_scale=0.5": {"reference_scale": 0.5}, "layers=up": {"layers": ("up*",)},
        "keep=nothing": {"keep": "nothing"}, "seed=1": {"seed": 1},
    }  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    full = plain
    for name, way in ways.items():
        with ours(pipe, refs, **way) as session:
            drawn = draw(pipe, options)
        full = drawn if name == "full" else full
        deviation = float((drawn - full).square().mean().sqrt() / (full - plain).square().mean().sqrt())
        found[name] = {"bank_mib": session.bank.bytes / 2**20, "passes": session.passes, "deviation": deviation}
    return found


PARTS = {"difference": parity, "seconds_per_image": batch, "rounds": rounds, "gflop": counted, "choices": choices}


def measured(name: str) -> float:
    """Peak memory of one way in a process of its own, MiB."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory", name]
    return float(
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    )


def memory(options: argparse.Namespace) -> float:
    """Of the device on CUDA, of the process elsewhere."""
    if options.memory == "imports":
        return peak_mib()
    pipe = build(options)
    refs = pictures(pipe, options.references)
    if options.memory == "nothing":
        draw(pipe, options)
    else:
        with (port if options.memory == "port" else ours)(pipe, refs):
            draw(pipe, options)
    if pipe.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_mib()


def peak_mib() -> float:
    """Of this process alone: what getrusage says includes the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def show(result: dict[str, Any]) -> None:
    print(
        f"\n{result['model']}, {result['device']}, {result['threads']} threads, batch {result['batch']}, "
        f"{result['references']} references, {result['steps']} steps; medians of {result['repeats']}, interleaved"
    )
    for name, part in SHOWN.items():
        if name in result:
            part(result[name])


def show_difference(found: dict[str, float]) -> None:
    print("\nequal images first: " + ", ".join(f"{name} {value:.2g}" for name, value in found.items()))


def show_seconds(per: dict[str, float]) -> None:
    print("\nseconds an image")
    for name, value in per.items():
        print(f"  {name:<12}{value:>9.4f}   {per['port'] / value:>5.2f}x")


def show_rounds(found: dict[str, list[float]]) -> None:
    print("\nseconds a round       port      ours")
    for number, (old, new) in enumerate(zip(found["port"], found["ours"], strict=True)):
        print(f"  round {number + 1:<12}{old:>7.3f}   {new:>7.3f}   {old / new:>5.2f}x")
    total = {name: sum(values) for name, values in found.items()}
    print(f"  all               {total['port']:>7.3f}   {total['ours']:>7.3f}   {total['port'] / total['ours']:>5.2f}x")


def show_counted(found: dict[str, float]) -> None:
    print("\nGFLOP, counted" + " " * 14 + "port / this")
    for name, value in found.items():
        old = found["port, all rounds" if name.endswith("rounds") else "port"]
        print(f"  {name:<18}{value:>9.1f}   {old / value:>5.2f}x")


def show_choices(found: dict[str, dict[str, float]]) -> None:
    print("\nways to keep less           MiB   passes   deviation")
    for name, row in found.items():
        print(f"  {name:<22}{row['bank_mib']:>7.2f}   {row['passes']:>6}   {row['deviation']:>9.2g}")


def show_memory(found: dict[str, float]) -> None:
    print("\npeak memory, MiB: " + ", ".join(f"{name} {value:.0f}" for name, value in found.items()))


SHOWN: dict[str, Callable[[Any], None]] = {
    "difference": show_difference, "seconds_per_image": show_seconds, "rounds": show_rounds, "gflop": show_counted,
    "choices": show_choices, "memory_mib": show_memory,
}  # fmt: skip


if __name__ == "__main__":
    main()
