"""Our D3PO and DDPO steps against the usual ones: seconds, memory and FLOPs, after checking that all compute one loss.

    python scripts/bench_online.py                                   # the embedded model, CPU
    python scripts/bench_online.py --trl /tmp/trl                    # and TRL's trainer, from a folder of its own:
    pip install --no-deps --target /tmp/trl trl==0.22.2

Human D3PO: one step on all 21 pairs of a group of 7 images. The usual way evaluates the two images of each pair anew,
with guidance in a doubled batch and gradients through both branches, and a second network as the reference; ours
evaluates each image once, the unconditional branch without a graph, and reads the reference's log-probabilities with
the images. DDPO: one step on a batch of paths, where only the branch makes the difference. The usual ways are
`_plain_online.py`. Everybody has the same paths, LoRA weights, dtype and AdamW; each runs in a process of its own, they
take turns, and medians are shown. On a CPU, seconds are those that the process had the CPU, for others use it, too.
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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from visfeedback.methods.d3po import D3PO
from visfeedback.methods.ddpo import DDPO
from visfeedback.sampling.rollout import Walk, latent_shape, noisy_steps, path_log_probs, piece, roll
from visfeedback.training.policy import put_weights
from visfeedback.training.run import Run
from visfeedback.training.settings import settings_for
from visfeedback.training.setup import Setup, prepare
from visfeedback.types.batches import Rollouts
from visfeedback.types.memory import host_peak_mib
from visfeedback.types.protocols import silent

RANK = 4
"""TRL's own"""
SHIFT = 0.5e-4
"""by which the stored log-probabilities differ from the true ones, so that ratios are not 1"""
RIVALS = {"d3po": ("usual d3po", "our d3po"), "ddpo": ("usual ddpo", "our ddpo", "trl ddpo")}
WARM_UP = 1


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory(prefix="bench-online-") as scratch:
        folder = Path(scratch)
        model = make_model(options, folder)
        result: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}, "torch": torch.__version__}
        for task, names in RIVALS.items():
            draw(options, model, folder, task)
            workers = {
                name: Worker(name, options, model, folder) for name in names if name != "trl ddpo" or options.trl
            }
            result[task] = compare(workers, options.repeats)
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


# the task that all share


def settings_of(name: str, options: argparse.Namespace, model: str) -> Any:
    return settings_for(name).model_validate({
        "model": {"id": model}, "method": {"name": name},
        "rollout": {"prompts": ["a red circle"], "prompts_per_round": 1, "per_prompt": options.images,
                    "steps": options.steps, "guidance": options.guidance},
        "reward": {"name": "compressibility"}, "lora": {"rank": RANK},
        "optim": {"batch_size": options.images, "lr": 1e-5},
        "engine": {"device": options.device, "threads": 1}, "eval": {"count": 0},
    })  # fmt: skip


def draw(options: argparse.Namespace, model: str, folder: Path, task: str) -> None:
    """Paths of a policy away from its reference, and its LoRA, into FOLDER/TASK.safetensors."""
    setup = prepare(settings_of(task, options, model), Run(folder / f"draw-{task}"), False, silent)
    backbone, generator = setup.backbone, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    batch = whole(setup, options, {})
    steps = noisy_steps(backbone.process, Walk(options.steps))
    with backbone.weights("reference"):
        reference = path_log_probs(backbone, batch, steps)
    change = SHIFT * torch.randn(batch.log_prob.shape, generator=generator)
    save_file({"latents": batch.latents, "log_prob": batch.log_prob + change, "reference": reference,
               "advantages": torch.randn(options.images, generator=generator),
               **{f"lora.{name}": value.detach().cpu() for name, value in backbone.named_parameters()}},
              folder / f"{task}.safetensors")  # fmt: skip


def whole(setup: Setup, options: argparse.Namespace, known: dict[str, torch.Tensor]) -> Rollouts:
    """All paths; drawn when they are not ``known``."""
    backbone, walk = setup.backbone, Walk(options.steps, options.guidance, 1.0)
    rows = options.images
    condition, without = backbone.encode_text(["a red circle"] * rows), backbone.encode_text([""] * rows)
    if not known:
        paths = roll(backbone, condition, without, range(rows), latent_shape(backbone), walk)
        known = {"latents": paths.latents, "log_prob": paths.log_prob}
    return Rollouts(
        latents=known["latents"], t=backbone.process.times(options.steps).expand(rows, -1), log_prob=known["log_prob"],
        condition=condition.to("cpu"), scores=torch.arange(float(rows)), group=torch.zeros(rows, dtype=torch.long),
        weight=known.get("advantages", torch.ones(rows)), unconditional=without.to("cpu"), guidance=walk.guidance,
        eta=walk.eta, reference_log_prob=known.get("reference"),
    )  # fmt: skip


class Pieces:
    """The paths as batches of our loop: one step for each network call."""

    def __init__(self, batch: Rollouts) -> None:
        self.pieces = [piece(batch, k) for k in range(batch.log_prob.shape[1])]
        self.calls = len(self.pieces)

    def batch(self, step: int, micro: int = 0, rank: int = 0) -> Rollouts:
        return self.pieces[micro]


# a rival in a process of its own


def work(options: argparse.Namespace) -> None:
    """Answers one line for each line that comes in: loss, step, flops, memory."""
    torch.set_num_threads(1)
    imported = host_peak_mib()
    rival = rival_of(options)
    for line in sys.stdin:
        known: dict[str, Any] = {
            "loss": rival.loss, "step": lambda: clock(rival.step, options.device),
            "flops": lambda: count(rival.step), "memory": lambda: memory(options.device, imported),
        }  # fmt: skip
        print(json.dumps(known[line.strip()]()), flush=True)


def rival_of(options: argparse.Namespace) -> Any:
    side, task = options.worker.split()
    known = load_file(Path(options.scratch) / f"{task}.safetensors")
    known = {name: value.to(options.device) if name.startswith("lora.") else value for name, value in known.items()}
    if side == "trl":
        return Trl(options, known)
    return (Ours if side == "our" else Usual)(options, task, known)


class Ours:
    """Our loop's own step."""

    def __init__(self, options: argparse.Namespace, task: str, known: dict[str, torch.Tensor]) -> None:
        self.setup = ready(options, task, known, "our")
        self.stepper = self.setup.stepper
        self.stepper.batches = Pieces(whole(self.setup, options, known))
        self.method = (D3PO if task == "d3po" else DDPO)()

    def loss(self) -> float:
        values = []
        with torch.no_grad():
            for part in self.stepper.batches.pieces:
                batch = part.to(self.setup.backbone.device)
                values.append(self.method.loss(self.setup.backbone, batch, self.stepper.context(0, 0))[0].item())
        return sum(values) / len(values)

    def step(self) -> None:
        self.stepper.step(0, lambda: False)


class Usual:
    """`_plain_online.py` on the same network."""

    def __init__(self, options: argparse.Namespace, task: str, known: dict[str, torch.Tensor]) -> None:
        from _plain_online import PlainD3PO, PlainDDPO

        setup = ready(options, task, known, "usual")
        parameters = list(setup.backbone.parameters())
        kind = PlainD3PO if task == "d3po" else PlainDDPO
        prompts = ["a red circle"] * options.images
        self.plain = kind(
            setup.backbone.pipe, prompts, options.steps, options.guidance, setup.stepper.optimizer, parameters
        )
        given = [known[name].to(options.device) for name in ("latents", "log_prob", "advantages")]
        self.given = (given[0], [float(i) for i in range(options.images)]) if task == "d3po" else tuple(given)

    def loss(self) -> float:
        with torch.no_grad():
            return self.plain.run(*self.given, learn=False)

    def step(self) -> None:
        self.plain.run(*self.given)


class Trl:
    """TRL's trainer with the same LoRA weights."""

    def __init__(self, options: argparse.Namespace, known: dict[str, torch.Tensor]) -> None:
        sys.path.insert(0, options.trl)
        from _plain_online import TrlDDPO

        prompts = ["a red circle"] * options.images
        self.rival = TrlDDPO(options.model, prompts, options.steps, options.guidance, Path(options.scratch))
        unet = self.rival.trainer.sd_pipeline.unet
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                plain = name.replace(".default.", ".")
                if ".lora_" in name:
                    parameter.copy_(known[f"lora.{plain}"])
        self.given = [known[name].to(options.device) for name in ("latents", "log_prob", "advantages")]

    def loss(self) -> float:
        return self.rival.loss(*self.given)

    def step(self) -> None:
        self.rival.run(*self.given)


def ready(options: argparse.Namespace, task: str, known: dict[str, torch.Tensor], side: str) -> Setup:
    """Network, LoRA and optimizer, before anything is learned."""
    run = Run(Path(options.scratch) / f"{side}-{task}")
    setup = prepare(settings_of(task, options, options.model), run, False, silent)
    put_weights(setup.backbone, {n.removeprefix("lora."): v for n, v in known.items() if n.startswith("lora.")})
    return setup


def clock(work: Any, device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def count(work: Any) -> float:
    """TFLOP."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


def memory(device: str, imported: float) -> dict[str, float]:
    """Peak, and what imports alone took, MiB; on a GPU that of the device."""
    if device != "cpu":
        return {"peak": torch.cuda.max_memory_allocated() / 2**20, "imports": 0.0}
    return {"peak": host_peak_mib(), "imports": imported}


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


def compare(workers: dict[str, Worker], repeats: int) -> dict[str, Any]:
    """Losses first: they must agree. Then FLOPs, seconds in turns, memory."""
    losses = {name: worker.ask("loss") for name, worker in workers.items()}
    if max(losses.values()) - min(losses.values()) > 1e-5 * max(1.0, max(map(abs, losses.values()))):
        raise SystemExit(f"the losses disagree, so nothing is timed: {losses}")
    found: dict[str, Any] = {"loss": losses, "tflop": {n: w.ask("flops") for n, w in workers.items()}}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for repeat in range(WARM_UP + repeats):
        for name, worker in workers.items():
            took = worker.ask("step")
            if repeat >= WARM_UP:
                seconds[name].append(took)
    found["seconds"] = {n: {"median": statistics.median(s), "min": min(s)} for n, s in seconds.items()}
    found["memory_mib"] = {name: worker.ask("memory") for name, worker in workers.items()}
    for worker in workers.values():
        worker.end()
    return found


def show(result: dict[str, Any], options: argparse.Namespace) -> None:
    model = f"random {options.random}" if options.random else options.model
    print(f"{model}, fp32, {options.device}, 1 thread; {options.images} images, {options.steps} steps, "
          f"LoRA rank {RANK}; median of {options.repeats}, interleaved")  # fmt: skip
    for task in RIVALS:
        rows, base = result[task], result[task]["seconds"][RIVALS[task][0]]["median"]
        print(f"\n{task}         loss         TFLOP   median s      min s   speed-up   peak MiB (imports)")
        for name, loss in rows["loss"].items():
            took, memory = rows["seconds"][name], rows["memory_mib"][name]
            print(f"{name:<11} {loss:+.8f}  {rows['tflop'][name]:>9.5f}  {took['median']:>9.3f}  {took['min']:>9.3f}  "
                  f"{base / took['median']:>8.2f}x   {memory['peak']:.0f} ({memory['imports']:.0f})")  # fmt: skip


if __name__ == "__main__":
    main()
