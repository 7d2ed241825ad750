"""Train several methods with several seeds and judge all of them on the same held-out prompts and image seeds.

    python scripts/compare_methods.py --out runs/methods --methods dpo d3po ddpo rwr raft refl draft --seeds 1 2 3
    python scripts/compare_methods.py --out runs/methods --methods dpo d3po --seeds 1 2 3 --report     # only the pages
    python scripts/compare_methods.py --out runs/lee --methods lee_rwr --seeds 1 2 3 \\
        --variant lee-no-auxiliary lee_rwr "--reward.auxiliary 0" --variant lee-no-real lee_rwr "--method.beta 0"

One training after the other, each a process of its own: `visfeedback train configs/METHOD/shapes_sd.toml`, or `loop`
for lee_rwr, human_d3po and dreamsync. Methods that learn from pairs first get images drawn with the training's seed and
compared by a simulated person (--stored-...). Then the adapter, and weights kept on the way (--along), are judged
against the base model, whose pictures are drawn once. Stop it as you like: the same command goes on, and what is done
is not done again; more --methods, --seeds and --variant may come later. --variant NAME METHOD-OR-PRESET "FLAGS" is one
more contestant. What finished is in OUT/summary.json, OUT/report.html, and for docs OUT/table.md and OUT/*.svg, after
every training; OUT/NAME-SEED/ has run/, evaluation/, along/, log.txt. Exit code 3: some contestants failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _contestants import Entrant, Job, entrant, presets

from visfeedback import prompts
from visfeedback.cli import evaluate
from visfeedback.cli.console import Console, calm
from visfeedback.evaluation.contest import read_contestant, summarise
from visfeedback.evaluation.contest_page import build, curves, gaming
from visfeedback.evaluation.contest_table import markdown
from visfeedback.plugins import InputError
from visfeedback.report.page import standalone_svg, write_page
from visfeedback.types.files import write_atomic, write_json
from visfeedback.types.locks import only_writer

FIGURES = ("curve_images.svg", "curve_seconds.svg", "gaming.svg")


def main() -> int:
    options = parse()
    console = Console()
    calm(console, options.debug)
    try:
        with interruptible(), only_writer(options.out):
            return run(options, console)
    except InputError as error:
        console.error(str(error))
        return 2
    except KeyboardInterrupt:
        console.error("stopped; the same command goes on")
        return 130


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=[], help="methods, loops, or presets as NAME=FILE.toml")
    parser.add_argument("--variant", nargs=3, action="append", default=[], metavar=("NAME", "METHOD", "FLAGS"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of training")
    parser.add_argument("--prompts", default="shapes:heldout:256")
    parser.add_argument("--per-prompt", type=int, default=2)
    parser.add_argument("--image-seed", type=int, default=7, help="of the held-out images")
    parser.add_argument("--reward", nargs="*", default=["shapes_clip"], help="who looks on besides the trained reward")
    parser.add_argument("--along", type=int, default=4, help="parts a training is cut into; weights between are judged")
    parser.add_argument("--along-prompts", default="shapes:heldout:98", help="on these, an image each")
    parser.add_argument("--stored-prompts", default="shapes:train:256", help="methods that learn from pairs: of these,")
    parser.add_argument("--stored-per-prompt", type=int, default=6, help="so many images each,")
    parser.add_argument("--stored-steps", type=int, default=10, help="drawn in so many steps,")
    parser.add_argument("--stored-judge", default="simulated:shapes", help="are compared by")
    parser.add_argument("--report", action="store_true", help="train nothing; write the pages of what is finished")
    parser.add_argument("--debug", action="store_true")
    return parser.parse_args()


def run(options: argparse.Namespace, console: Console) -> int:
    entrants = invited(options)
    check(options, entrants)
    claim(options)
    jobs = [Job(entrant, seed, options, console) for entrant in entrants for seed in options.seeds]
    for job in jobs:
        job.check()
    failed: dict[str, str] = {}
    for number, job in enumerate([] if options.report else jobs, 1):
        if not job.done:
            console.info(f"{number}/{len(jobs)} {job.name}")
            if why := job.run():
                failed[job.name] = why
                console.warn(f"{job.name} failed: {why}; see {job.folder / 'log.txt'}")
            report(options, jobs, failed, console, say=False)
    report(options, jobs, failed, console)
    return 3 if failed else 0


def invited(options: argparse.Namespace) -> list[Entrant]:
    found = [entrant(*_named(method), "") for method in options.methods]
    found += [entrant(name, method, flags) for name, method, flags in options.variant]
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"{twice} is named twice; give a --variant another name")
    if not found:
        raise InputError(f"no methods given; expected --methods with some of {', '.join(sorted(presets()))}")
    return found


def _named(method: str) -> tuple[str, str]:
    name, _, file = method.partition("=")
    return name, file or name


def check(options: argparse.Namespace, entrants: Sequence[Entrant]) -> None:
    """Raises InputError for what would only show after hours."""
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        raise InputError(f"--seeds {' '.join(map(str, options.seeds))}: expected different numbers from 0 on")
    for name, least in (("per_prompt", 1), ("along", 0), ("stored_per_prompt", 2), ("stored_steps", 1)):
        if getattr(options, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected {least} or more")
    judged = prompts.load(options.prompts)
    if options.along and {p.id for p in prompts.load(options.along_prompts)} - {p.id for p in judged}:
        raise InputError(
            f"--along-prompts {options.along_prompts} are not all of --prompts {options.prompts}; ask fewer"
        )
    chosen = evaluate.EvaluateSettings(
        adapter="", out=options.out, prompts=options.prompts, reward=tuple(options.reward)
    )  # fmt: skip
    if evaluate.invite(chosen, judged).verifier is None:
        raise InputError(f"nobody can say whether an image of {options.prompts} is right; expected shapes:heldout[:N]")
    for one in entrants:
        one.settings()


def claim(options: argparse.Namespace) -> None:
    """What all contestants share must stay. Raises InputError naming the first difference."""
    file = options.out / "contest.json"
    shared = {name: getattr(options, name) for name in ("prompts", "per_prompt", "image_seed", "reward", "along",
              "along_prompts", "stored_prompts", "stored_per_prompt", "stored_steps", "stored_judge")}  # fmt: skip
    if not file.is_file():
        if any(path.name != ".lock" for path in options.out.iterdir()):
            raise InputError(f"{options.out} is not empty and holds no comparison of methods; name another --out")
        write_json(file, shared)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    for name, value in shared.items():
        if before.get(name) != value:
            raise InputError(
                f"{options.out} was begun with --{name.replace('_', '-')} {before.get(name)}, now it is {value}; "
                "repeat it, or name another --out"
            )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A request to end is a Ctrl-C."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def report(
    options: argparse.Namespace, jobs: Sequence[Job], failed: dict[str, str], console: Console, say: bool = True
) -> None:
    """Pages, table and figures of what is judged so far. Raises InputError when nothing is."""
    finished = [job for job in jobs if job.judged]
    if not finished:
        if say and not failed:
            raise InputError(f"nothing is finished in {options.out} yet; leave out --report")
        return
    found = [read_contestant(job.entrant.name, job.seed, job.folder, job.before) for job in finished]
    methods = summarise(found, options.image_seed)
    summary = {
        "command": f"python scripts/compare_methods.py {shlex.join(sys.argv[1:])}", "judge": found[0].summary["judge"],
        "prompts": options.prompts, "n_prompts": found[0].summary["n_prompts"],
        "images_per_prompt": options.per_prompt, "image_seed": options.image_seed, "failed": failed,
        "unfinished": [job.name for job in jobs if not job.judged and job.name not in failed], "methods": methods,
    }  # fmt: skip
    write_json(options.out / "summary.json", summary)
    write_atomic(options.out / "table.md", markdown(methods))
    write_page(options.out / "report.html", build(methods, summary))
    for name, figure in zip(FIGURES, (*curves(methods), gaming(methods)), strict=True):
        write_atomic(options.out / name, standalone_svg(figure))
    if say:
        print(markdown(methods))
        console.info(f"report: {options.out / 'report.html'}, table: {options.out / 'table.md'}")


if __name__ == "__main__":
    sys.exit(main())
