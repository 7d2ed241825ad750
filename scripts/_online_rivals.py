"""For bench_online.py: the paths that all learn from, and each rival as a process that is asked line by line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from visfeedback.diffusion.ddpm import DDPM
from visfeedback.methods.d3po import D3PO
from visfeedback.methods.ddpo import DDPO
from visfeedback.sampling.rollout import Walk, noisy_steps, path_log_probs, piece, roll
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
TOLD, WHOLE = "told", "whole"
"""a gradient through the branch that is told the prompt, or through both"""

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
    check_steps(backbone.process, options.steps)
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


def check_steps(process: DDPM, steps: int) -> None:
    """Raises SystemExit where the usual ways, which go T // steps on from a stop, would miss the next one."""
    stops, jump = process.index(process.times(steps)).tolist()[:-1], process.steps // steps
    if any(now - then != jump for now, then in pairwise(stops)):
        raise SystemExit(
            f"--steps {steps}: this model stops at {stops}, and the usual ways step by {jump}, so they would learn "
            f"others; give a number that divides {process.steps}"
        )


def whole(setup: Setup, options: argparse.Namespace, known: dict[str, Tensor]) -> Rollouts:
    """All paths; drawn when they are not ``known``."""
    backbone, walk = setup.backbone, Walk(options.steps, options.guidance, 1.0)
    rows = options.images
    condition, without = backbone.encode_text(["a red circle"] * rows), backbone.encode_text([""] * rows)
    if not known:
        paths = roll(backbone, condition, without, range(rows), backbone.latent_shape, walk)
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
    """Answers one line for each line that comes in: loss, gradient told, gradient whole, step, flops, memory."""
    torch.set_num_threads(1)
    imported = host_peak_mib()
    rival = rival_of(options)
    for line in sys.stdin:
        known: dict[str, Any] = {
            "loss": rival.loss, f"gradient {TOLD}": partial(keep, rival, TOLD, options),
            f"gradient {WHOLE}": partial(keep, rival, WHOLE, options),
            "step": lambda: clock(rival.step, options.device), "flops": lambda: count(rival.step),
            "memory": lambda: memory(options.device, imported),
        }  # fmt: skip
        print(json.dumps(known[line.strip()]()), flush=True)


def keep(rival: Any, which: str, options: argparse.Namespace) -> str:
    """The file that holds its gradient."""
    file = Path(options.scratch) / f"gradient {which} of {options.worker}.safetensors"
    save_file({name: value.detach().cpu().contiguous() for name, value in rival.gradient(which).items()}, file)
    return str(file)


def taken(named: Any) -> dict[str, Tensor]:
    """The gradients of parameters by name, which have none afterwards."""
    found = {name: parameter.grad for name, parameter in named}
    for _, parameter in named:
        parameter.grad = None
    return found


@contextmanager
def told_alone(unet: nn.Module) -> Iterator[None]:
    """Inside the block a doubled batch has a graph through its second half, the told one, alone. No value changes."""

    def cut(module: nn.Module, given: Any, output: Any) -> Any:
        without, told = output.sample.chunk(2)
        return type(output)(sample=torch.cat([without.detach(), told]))

    handle = unet.register_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def rival_of(options: argparse.Namespace) -> Any:
    side, task = options.worker.split()
    known = load_file(Path(options.scratch) / f"{task}.safetensors")
    known = {name: value.to(options.device) if name.startswith("lora.") else value for name, value in known.items()}
    if side == "trl":
        return Trl(options, known)
    return (Ours if side == "our" else Usual)(options, task, known)


class Ours:
    """Our loop's own step."""

    def __init__(self, options: argparse.Namespace, task: str, known: dict[str, Tensor]) -> None:
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

    def gradient(self, which: str) -> dict[str, Tensor]:
        """Our loop's own; through the told branch, for there is no other here."""
        assert which == TOLD
        for micro in range(self.stepper.batches.calls):
            self.stepper.backward(0, micro)
        return taken(list(self.setup.backbone.named_parameters()))

    def step(self) -> None:
        self.stepper.step(0, lambda: False)


class Usual:
    """`_plain_online.py` on the same network."""

    def __init__(self, options: argparse.Namespace, task: str, known: dict[str, Tensor]) -> None:
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
        self.named = list(setup.backbone.named_parameters())

    def loss(self) -> float:
        with torch.no_grad():
            return self.plain.learn(*self.given)

    def gradient(self, which: str) -> dict[str, Tensor]:
        with told_alone(self.plain.pipe.unet) if which == TOLD else nullcontext():
            self.plain.learn(*self.given)
        return taken(self.named)

    def step(self) -> None:
        self.plain.learn(*self.given)
        self.plain.finish()


class Trl:
    """TRL's trainer with the same LoRA weights."""

    def __init__(self, options: argparse.Namespace, known: dict[str, Tensor]) -> None:
        sys.path.insert(0, options.trl)
        from _plain_online import TrlDDPO

        prompts = ["a red circle"] * options.images
        self.rival = TrlDDPO(options.model, prompts, options.steps, options.guidance, Path(options.scratch))
        self.unet = self.rival.trainer.sd_pipeline.unet
        parameters = self.unet.named_parameters()
        self.named = [(n.replace(".default.", "."), parameter) for n, parameter in parameters if ".lora_" in n]
        with torch.no_grad():
            for name, parameter in self.named:
                parameter.copy_(known[f"lora.{name}"])
        self.given = [known[name].to(options.device) for name in ("latents", "log_prob", "advantages")]

    def loss(self) -> float:
        with torch.no_grad():
            return self.rival.learn(*self.given)

    def gradient(self, which: str) -> dict[str, Tensor]:
        with told_alone(self.unet) if which == TOLD else nullcontext():
            self.rival.learn(*self.given)
        return taken(self.named)

    def step(self) -> None:
        self.rival.run(*self.given)


def ready(options: argparse.Namespace, task: str, known: dict[str, Tensor], side: str) -> Setup:
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
