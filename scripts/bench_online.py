"""Our D3PO and DDPO steps against the usual ones: seconds, memory and FLOPs, after checking that all learn the same.

    python scripts/bench_online.py                                   # the embedded model, CPU
    python scripts/bench_online.py --only ddpo --images 32           # a batch in which the calls' own cost matters less
    python scripts/bench_online.py --trl /tmp/trl                    # and TRL's trainer, from a folder of its own:
    pip install --no-deps --target /tmp/trl trl==0.22.2

Human D3PO: one step on all pairs of a group of images, 21 of 7. The usual way evaluates the two images of each pair
anew, with guidance in a doubled batch and gradients through both branches, and a second network as the reference; ours
evaluates each image once, the unconditional branch without a graph, and reads the reference's log-probabilities with
the images. DDPO: one step on a batch of paths, where only the branch makes the difference. The usual ways are
`_plain_online.py`. Everybody has the same paths, LoRA weights, dtype and AdamW; each runs in a process of its own, they
take turns, and medians are shown. On a CPU, seconds are those that the process had the CPU, for others use it, too.

Before anything is timed the losses must agree to 1e-5, and so must gradients to 1e-3 of their length, for a loss may
hide them: D3PO's is within 1e-4 of ln 2. Ours has no part through the unconditional branch by design. So two gradients
are compared: everybody's with that branch cut out of the graph, and the whole one of those who learn from it; how far
apart the two are is shown, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _online_rivals import RANK, TOLD, WHOLE, draw, work
from safetensors.torch import load_file

RIVALS = {"d3po": ("usual d3po", "our d3po"), "ddpo": ("usual ddpo", "our ddpo", "trl ddpo")}
"""the first one is the measure of the others' speed"""
WARM_UP = 1
LOSSES, GRADIENTS = 1e-5, 1e-3
"""differences that are rounding, not another objective"""


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory(prefix="bench-online-") as scratch:
        folder = Path(scratch)
        model = make_model(options, folder)
        result: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}, "torch": torch.__version__}
        for task in [options.only] if options.only else RIVALS:
            names = RIVALS[task]
            draw(options, model, folder, task)
            workers = {
                name: Worker(name, options, model, folder) for name in names if name != "trl ddpo" or options.trl
            }
            result[task] = compare(workers, options)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    show(result, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes:sd", help="hub id, diffusers folder or shapes:sd")
    parser.add_argument("--random", choices=("sd15", "tiny"), help="random weights of this size instead of --model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=7, help="of a prompt in a group; paths in a DDPO batch")
    parser.add_argument("--steps", type=int, default=5, help="denoising steps, all of which are learned")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--only", choices=tuple(RIVALS), help="one of the two steps")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--trl", help="folder with trl 0.22.2")
    parser.add_argument("--out", help="JSON file for the numbers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_model(options: argparse.Namespace, folder: Path) -> str:
    """A diffusers folder."""
    if not options.random:
        from visfeedback.backbones.sources import find_model

        return str(find_model(options.model))
    from _plain_dpo import random_pipeline

    random_pipeline(options.random).save_pretrained(folder / "model")
    return str(folder / "model")


# comparing


class Worker:
    """A rival's process, asked line by line."""

    def __init__(self, name: str, options: argparse.Namespace, model: str, folder: Path) -> None:
        same = {key: getattr(options, key) for key in ("device", "images", "steps", "guidance")}
        flags = [part for key, value in same.items() for part in (f"--{key}", str(value))]
        flags += ["--trl", options.trl] if options.trl else []
        command = [sys.executable, __file__, "--model", model, "--worker", name, "--scratch", str(folder), *flags]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: str) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:  # libraries talk, too
            try:
                return json.loads(line)
            except ValueError:
                continue
        raise SystemExit(f"{self.process.args} ended")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(workers: dict[str, Worker], options: argparse.Namespace) -> dict[str, Any]:
    """Losses and gradients first: they must agree. Then FLOPs, seconds in turns, memory."""
    losses = {name: worker.ask("loss") for name, worker in workers.items()}
    if max(losses.values()) - min(losses.values()) > LOSSES * max(1.0, max(map(abs, losses.values()))):
        raise SystemExit(f"the losses disagree, so nothing is timed: {losses}")
    told = {name: load_file(worker.ask(f"gradient {TOLD}")) for name, worker in workers.items()}
    whole = {n: load_file(w.ask(f"gradient {WHOLE}")) for n, w in workers.items() if not n.startswith("our ")}
    found: dict[str, Any] = {"loss": losses, "gradient": compare_gradients(told, whole)}
    found["tflop"] = {name: worker.ask("flops") for name, worker in workers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for repeat in range(WARM_UP + options.repeats):
        for name, worker in workers.items():
            took = worker.ask("step")
            if repeat >= WARM_UP:
                seconds[name].append(took)
    found["seconds"] = {n: {"median": statistics.median(s), "min": min(s)} for n, s in seconds.items()}
    found["images_per_second"] = {n: options.images / row["median"] for n, row in found["seconds"].items()}
    found["memory_mib"] = {name: worker.ask("memory") for name, worker in workers.items()}
    for worker in workers.values():
        worker.end()
    return found


Gradient = dict[str, torch.Tensor]


def compare_gradients(told: dict[str, Gradient], whole: dict[str, Gradient]) -> dict[str, Any]:
    """Rival -> gradient through the told branch, of all; and through both, of those who have it. The largest distance
    to the first rival's as a share of its length; and the cosine between the two kinds, by how much they differ.

    Raises SystemExit when gradients that are meant to be the same are not.
    """
    found: dict[str, Any] = {}
    for kind, gradients in ((TOLD, told), (WHOLE, whole)):
        vectors = {name: flat(gradient) for name, gradient in gradients.items()}
        first = next(iter(vectors.values()))
        apart = {name: float((vector - first).norm() / first.norm()) for name, vector in vectors.items()}
        if not all(value <= GRADIENTS for value in apart.values()):  # NaN is not, either
            raise SystemExit(f"the gradients ({kind}) disagree, so nothing is timed: {apart} of the first one's length")
        found[kind] = {"length": float(first.norm()), "apart": max(apart.values())}
    one, other = (flat(next(iter(gradients.values()))) for gradients in (told, whole))
    return {**found, "cosine": float(one @ other / one.norm() / other.norm())}


def flat(gradient: Gradient) -> torch.Tensor:
    """All numbers in one row, in the order of their names."""
    return torch.cat([gradient[name].flatten().double() for name in sorted(gradient)])


def show(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Markdown."""
    model = f"random {options.random}" if options.random else options.model
    print(f"{model}, fp32, {options.device}, 1 thread; {options.images} images, {options.steps} denoising steps, "
          f"LoRA rank {RANK}; median of {options.repeats}, interleaved")  # fmt: skip
    for task in RIVALS:
        if task in result:
            print("\n" + table(task, result[task], options.images))
            print("\n" + agreement(result[task]))


def table(task: str, rows: dict[str, Any], images: int) -> str:
    """A row for each rival."""
    base = rows["seconds"][RIVALS[task][0]]["median"]
    lines = ["| step | images | loss | TFLOP | seconds (least) | images/s | speed-up | peak MiB (imports) |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, loss in rows["loss"].items():
        took, memory = rows["seconds"][name], rows["memory_mib"][name]
        lines.append(
            f"| {name} | {images} | {loss:+.8f} | {rows['tflop'][name]:.5f} | {took['median']:.3f} ({took['min']:.3f}) "
            f"| {rows['images_per_second'][name]:.1f} | {base / took['median']:.2f}x "
            f"| {memory['peak']:.0f} ({memory['imports']:.0f}) |"
        )
    return "\n".join(lines)


def agreement(rows: dict[str, Any]) -> str:
    """What was compared before."""
    told, whole = rows["gradient"][TOLD], rows["gradient"][WHOLE]
    same = f", apart by {whole['apart']:.1e} of it" if len(rows["loss"]) > 2 else ""
    return (
        f"gradient without the unconditional branch, of all: length {told['length']:.3g}, apart by "
        f"{told['apart']:.1e} of it; with that branch, which ours leaves out: length {whole['length']:.3g}{same}; "
        f"cosine between the two {rows['gradient']['cosine']:.3f}"
    )


if __name__ == "__main__":
    main()
