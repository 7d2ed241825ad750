"""`visfeedback score` against the same models run one by one: seconds, FLOPs and memory, after checking the scores.

    python scripts/bench_score.py                                    # 5 rewards x 200 images, tiny random networks, CPU
    python scripts/bench_score.py --size large --images 16 --repeats 3    # ViT-L/14 and BLIP ViT-L/16, random weights
    python scripts/bench_score.py --size large --images 512 --side 1024 --device cuda --dtype bf16

The usual way is `PLAIN` in _plain_scores.py: a script for each reward that decodes every image and scores one pair at a
time; hpsv2 reads its checkpoint in every call, as its package does. Ours is one run over all rewards that ends with the
table on disk. Both have their models' code imported; both load their weights, which is also shown by itself. They take
turns, and medians are shown. A second run has the same images and other prompts: two-tower rewards take the kept
embeddings of the disk, ImageReward its keys and values in memory. Memory is that of a process over generated images.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from _plain_scores import PLAIN, write_models
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging as transformers_logging

from visfeedback import rewards
from visfeedback.scoring import tables
from visfeedback.scoring.api import Scorer
from visfeedback.scoring.decode import decode
from visfeedback.scoring.run import Run
from visfeedback.scoring.settings import ScoreSettings
from visfeedback.scoring.sources import open_source
from visfeedback.types.protocols import Reward

TWO_TOWERS = ("clipscore", "aesthetic", "pickscore", "hpsv2")
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 5e-3}
"""Of the largest score there can be; of the score itself, or of 1, where there is no bound."""
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "brown", "grey")
THINGS = ("lighthouse", "market", "bicycle", "river", "cathedral", "desk", "garden", "train")


def main() -> None:
    options = parse()
    transformers_logging.disable_progress_bar()
    if options.measure_memory:
        print(json.dumps(memory_of(options)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-score-", dir=options.scratch) as scratch:
        bench = Bench(options, Path(scratch))
        result: dict[str, Any] = {"options": vars(options), "device": bench.device_name, "torch": torch.__version__,
                                  "threads": torch.get_num_threads()}  # fmt: skip
        result["parity"] = bench.parity()
        result["tflop"] = bench.flops()
        result["tflops_per_second"], result["reading_seconds"] = bench.limit(), bench.reading()
        result["seconds"] = bench.times()
        if options.memory:
            result["memory_mib"] = {count: child_memory(count) for count in options.memory}
    show(result, options)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2, default=str) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "large"), default="tiny", help="of the random networks")
    parser.add_argument("--rewards", nargs="+", choices=list(PLAIN), default=list(PLAIN))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=512, help="of the images, px; they are PNG")
    parser.add_argument("--per-prompt", type=int, default=4, help="images of each prompt")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of ours; the usual is fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[1000, 10_000], help="generated images; none: left out"
    )
    parser.add_argument("--scratch", help="folder for images and weights (large: 7 GB)")
    parser.add_argument("--out", help="JSON file for the numbers")
    parser.add_argument("--measure-memory", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_images(folder: Path, count: int, side: int) -> list[Path]:
    """Soft noise: PNGs that are as hard to decode as photographs."""
    folder.mkdir(parents=True)
    random = numpy.random.default_rng(0)
    paths = [folder / f"{n:05}.png" for n in range(count)]
    for path in paths:
        small = Image.fromarray(random.integers(0, 256, (side // 8 + 1, side // 8 + 1, 3), numpy.uint8))
        noise = random.integers(0, 12, (side, side, 3), numpy.uint8)
        smooth = numpy.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 243)
        Image.fromarray(smooth + noise).save(path, compress_level=4)
    return paths


def write_prompts(count: int, per_prompt: int, seed: int) -> list[str]:
    """One for each image: about 20 tokens."""
    random = numpy.random.default_rng(seed)
    texts = []
    for n in range(-(-count // per_prompt)):
        colour, other, thing = random.choice(COLOURS), random.choice(COLOURS), random.choice(THINGS)
        texts.append(f"a {colour} {thing} beside a {other} {random.choice(THINGS)} at dusk, number {n}, oil on canvas")
    return [texts[n // per_prompt] for n in range(count)]


@dataclass
class Bench:
    """Both sides on the same files."""

    options: argparse.Namespace
    folder: Path
    runs: int = field(default=0)

    def __post_init__(self) -> None:
        o = self.options
        self.references = {
            name: r for name, r in write_models(self.folder / "models", o.size).items() if name in o.rewards
        }
        self.images = write_images(self.folder / "images", o.images, o.side)
        self.prompts = write_prompts(o.images, o.per_prompt, 0)
        self.others = write_prompts(o.images, o.per_prompt, 1)
        self.settings = ScoreSettings(batch_size=o.batch, cache=str(self.folder / "cache"))
        cuda = o.device.startswith("cuda")
        self.device_name = torch.cuda.get_device_name(o.device) if cuda else "cpu"

    def load(self, names: Sequence[str] = ()) -> list[Reward]:
        chosen = names or self.options.rewards
        return [rewards.load(self.references[name], self.options.device, self.options.dtype) for name in chosen]

    def ours(self, loaded: Sequence[Reward], prompts: Sequence[str]) -> Path:
        """One run, the table on disk included."""
        self.runs += 1
        out = self.folder / f"scores-{self.runs}.parquet"
        source = open_source(str(self.folder / "images"), self.settings)
        Run(source, loaded, out, prompts, "paired", self.settings, self.options.device).go()
        self.synchronise()
        return out

    @torch.no_grad()
    def usual(self, names: Sequence[str], prompts: Sequence[str]) -> dict[str, list[float]]:
        found = {name: PLAIN[name](self.folder / "models", self.images, prompts, self.options.device) for name in names}
        self.synchronise()
        return found

    def synchronise(self) -> None:
        if self.options.device.startswith("cuda"):
            torch.cuda.synchronize()

    def forget(self) -> None:
        """No embeddings from before."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    # what is measured

    @torch.no_grad()
    def parity(self) -> dict[str, float]:
        """Largest difference of each reward's scores, relative to its scale. Ends the program when it is too large."""
        self.forget()
        o, some = self.options, min(16, len(self.images))
        loaded = self.load()
        rows = [row for table in tables.read(self.ours(loaded, self.prompts)) for row in table.to_pylist()]
        apart = {}
        for name, reward in zip(o.rewards, loaded, strict=True):
            plain = PLAIN[name](self.folder / "models", self.images[:some], self.prompts[:some], o.device)
            ours = [row["score"] for row in rows if row["reward"] == name][:some]
            scale = reward.range[1] if math.isfinite(reward.range[1]) else 1.0
            apart[name] = max(abs(a - b) / max(abs(a), scale) for a, b in zip(plain, ours, strict=True))
        if max(apart.values()) > TOLERANCE[o.dtype]:
            raise SystemExit(f"the two sides disagree, so nothing is timed: {apart}")
        return apart

    @torch.no_grad()
    def flops(self) -> dict[str, float]:
        """TFLOP of the whole first run: what must be computed when nothing is computed twice; and of the usual way."""
        loaded, image = self.load(), Image.open(self.images[0])
        parts: dict[str, float] = {}
        towers: dict[tuple[str, str], str] = {}
        texts = len(dict.fromkeys(self.prompts))
        usual = 0.0
        for name, reward in zip(self.options.rewards, loaded, strict=True):
            pixels = reward.preprocess(image)[None]
            features, encoded = reward.encode_images(pixels), reward.encode_texts(self.prompts[:1])
            eye = count(lambda reward=reward, pixels=pixels: reward.encode_images(pixels))
            read = count(lambda reward=reward: reward.encode_texts(self.prompts[:1])) if reward.reads_prompt else 0.0
            join = count(lambda reward=reward, f=features, e=encoded: reward.combine(f, e))
            if (reward.encoder, reward.preprocessing) not in towers:
                towers[reward.encoder, reward.preprocessing] = name
                parts[f"{name}: images"] = eye * len(self.images)
            parts[f"{name}: texts and pairs"] = read * texts + join * len(self.images)
            usual += (eye + read + join) * len(self.images)
        return {**parts, "ours": sum(parts.values()), "each pair by itself": usual}

    def reading(self) -> float:
        """Seconds of one core to read, decode and preprocess all images, each distinct preprocessing once."""
        functions = {reward.preprocessing: reward.preprocess for reward in self.load()}
        some = self.images[:8]

        def prepare() -> None:
            for path in some:
                image, _ = decode(path.read_bytes(), 64)
                for function in functions.values():
                    function(image)

        prepare()
        began = time.process_time()
        prepare()
        return (time.process_time() - began) / len(some) * len(self.images)

    def limit(self) -> float:
        """TFLOP a second of this device's matrix products, the best of several sizes."""
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.options.dtype]
        best = 0.0
        for side in (1024, 2048, 4096):
            a, b = (torch.randn(side, side, device=self.options.device).to(kind) for _ in range(2))
            for _ in range(3):
                best = max(best, 2 * side**3 / 1e12 / clock(lambda a=a, b=b: (a @ b).sum().item()))
        return best

    def times(self) -> dict[str, float]:
        """Medians, all taking turns."""
        o = self.options
        two = [name for name in o.rewards if name in TWO_TOWERS]
        taken: dict[str, list[float]] = {}

        def note(name: str, work: Callable[[], Any]) -> Any:
            began = time.perf_counter()
            result = work()
            taken.setdefault(name, []).append(time.perf_counter() - began)
            return result

        for _ in range(o.repeats):
            note("usual, all rewards", lambda: self.usual(o.rewards, self.prompts))
            note("usual, two-tower rewards", lambda: self.usual(two, self.others))
            self.forget()
            loaded = note("ours, loading", self.load)
            note("ours, first run", lambda loaded=loaded: self.ours(loaded, self.prompts))
            towers = note("ours, loading two-tower rewards", lambda: self.load(two) if two else [])
            note("ours, second run, two-tower rewards", lambda towers=towers: self.ours(towers, self.others))
            loaded = [one for one in loaded if one.name == "imagereward"]
            del towers  # large networks twice are more than a small machine holds
            if loaded:
                note("usual, imagereward", lambda: self.usual(["imagereward"], self.others))
                self.kept(loaded, note)
            del loaded
        return {name: statistics.median(values) for name, values in taken.items()}

    def kept(self, loaded: Sequence[Reward], note: Callable[[str, Callable[[], Any]], Any]) -> None:
        """ImageReward again and again on the same images in one process, keys and values in memory."""
        reward: Any = next(one for one in loaded if one.name == "imagereward")
        reward.bank.limit_mib = 64 * 1024
        scorer = Scorer([reward], self.options.device, settings=self.settings, keep_mib=64 * 1024)
        paths = [str(path) for path in self.images]
        # Keys and values pay for themselves from some prompts on; several prompts at once make them.
        scorer.score(paths, list(dict.fromkeys(self.prompts))[:8], pairing="matrix")
        note("ours, second run, imagereward", lambda: scorer.score(paths, self.others))


def count(stage: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        stage()
    return counter.get_total_flops() / 1e12


def clock(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# memory


def memory_of(options: argparse.Namespace) -> dict[str, float]:
    """Peak of this process over a run of the tiny rewards on generated images, MiB, and before it."""
    import resource

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    with tempfile.TemporaryDirectory(prefix="bench-score-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        references = write_models(folder / "models", "tiny")
        write_images(folder / "images", options.images, 64)
        prompts = write_prompts(options.images, 4, 0)
        loaded = [rewards.load(reference) for reference in references.values()]
        settings = ScoreSettings(batch_size=options.batch, cache=str(folder / "cache"))
        before = peak()
        Run(
            open_source(str(folder / "images"), settings), loaded, folder / "o.parquet", prompts, "paired", settings
        ).go()
    return {"peak": peak(), "before": before}


def child_memory(images: int) -> dict[str, float]:
    """`memory_of` in a process of its own, for a process's peak never falls."""
    command = [sys.executable, __file__, "--images", str(images), "--measure-memory"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# the tables at the end


def show(result: dict[str, Any], options: argparse.Namespace) -> None:
    seconds, tflop = result["seconds"], result["tflop"]
    what = f"{len(options.rewards)} rewards ({options.size} random networks, {options.dtype}) x {options.images} images"
    where = f"{result['device']}, {result['threads']} threads; median of {options.repeats}, interleaved"
    print(f"\n{what} of {options.side} px, {options.per_prompt} a prompt; {where}")
    print("\nlargest difference of scores: " + ", ".join(f"{k} {v:.1e}" for k, v in result["parity"].items()))
    print("\nseconds")
    for name, value in seconds.items():
        print(f"  {name:<40}{value:>9.2f}")
    show_speed(seconds)
    print("\nTFLOP, counted")
    for name, value in tflop.items():
        print(f"  {name:<40}{value:>9.3f}")
    show_limit(result, seconds["ours, first run"])
    for number, value in result.get("memory_mib", {}).items():
        print(f"{number} images: peak {value['peak']:.0f} MiB, {value['before']:.0f} before the run")


def show_limit(result: dict[str, Any], run: float) -> None:
    """What no run can be faster than: networks at the speed of matrix products, reading on all cores."""
    cores, threads = len(os.sched_getaffinity(0)), result["threads"]
    networks, reading = result["tflop"]["ours"] / result["tflops_per_second"], result["reading_seconds"]
    if result["device"] == "cpu":  # both on the same cores
        least = max(networks, (networks * threads + reading) / cores)
    else:
        least = max(networks, reading / cores)
    print(f"\nmatrix products reach {result['tflops_per_second']:.3f} TFLOP/s: the networks need {networks:.2f} s; "
          f"reading needs {reading:.2f} s of one core, and there are {cores}")  # fmt: skip
    print(f"so no run takes less than {least:.2f} s; ours takes {run:.2f} s, {least / run:.0%} of the limit")


def show_speed(seconds: dict[str, float]) -> None:
    print("\nspeed-up                                  with loading   without")
    load = seconds["ours, loading"]
    speed("first run, all rewards", seconds["usual, all rewards"], seconds["ours, first run"], load)
    towers = seconds["ours, loading two-tower rewards"]
    for kind, again in (("two-tower rewards", towers), ("imagereward", 0.0)):  # one process keeps ImageReward loaded
        ours = seconds.get(f"ours, second run, {kind}")
        if ours is not None:
            speed(f"second run, {kind}", seconds[f"usual, {kind}"], ours, again)


def speed(name: str, usual: float, ours: float, load: float) -> None:
    print(f"  {name:<40}{usual / (ours + load):>11.1f}x {usual / ours:>8.1f}x")


if __name__ == "__main__":
    main()
