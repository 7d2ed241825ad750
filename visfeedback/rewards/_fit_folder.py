"""The folder of a fitted reward: config.json, weights.safetensors, summary.json, card.md, and .fit while it is made.

``summary.json`` is written last and says that all is there. May import: types.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from visfeedback.plugins import VERSION, InputError
from visfeedback.types.files import write_atomic, write_json
from visfeedback.types.records import Frozen

CONFIG, WEIGHTS, SUMMARY, CARD, WORK = "config.json", "weights.safetensors", "summary.json", "card.md", ".fit"


class Config(Frozen):
    """What it takes to load the reward again."""

    kind: Literal["head", "network", "labels"]
    base: str
    """the reward below: NAME[:VARIANT][@PATH_OR_HUB]"""
    base_sha256: str
    """of the checkpoint it had"""
    hidden: int = 0
    """width of the head's hidden layer; 0 for none"""
    inputs: int = 0
    """numbers a head reads for each picture and prompt"""
    scale: float = 1.0
    """a network's score is the base's times this; the temperature is in it"""


def claim(out: Path, identity: str) -> dict[str, Any] | None:
    """Make ``out`` this fit's own; the summary when it was finished before.

    Raises InputError when the folder holds another fit or other things: nothing of anybody's is overwritten.
    """
    note = out / WORK / "identity"
    if (out / SUMMARY).is_file() and (out / CONFIG).is_file():
        summary = _json(out / SUMMARY)
        if summary.get("identity") == identity:
            return summary
        raise InputError(f"{out} holds a fit of other comparisons or settings; give another --out")
    if note.is_file():
        if note.read_text(encoding="utf-8") != identity:
            raise InputError(f"{out} holds a fit of other comparisons or settings; give another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty and holds no fit; give another --out")
    else:
        write_atomic(note, identity)
    return None


@contextmanager
def given_back(out: Path) -> Iterator[None]:
    """When the user's input turns out to be wrong inside the block, the folder is as it was before ``claim``."""
    try:
        yield
    except InputError:
        shutil.rmtree(out / WORK, ignore_errors=True)
        with suppress(OSError):  # it is not empty: not ours
            out.rmdir()
        raise


def write(out: Path, config: Config, weights: Mapping[str, Tensor], summary: dict[str, Any], words: str = "") -> None:
    """Everything, and the working folder goes; ``words`` is the card, that of comparisons when left out."""
    write_atomic(out / WEIGHTS, save({name: value.detach().cpu().contiguous() for name, value in weights.items()}))
    write_json(out / CONFIG, config.model_dump(mode="json"))
    write_atomic(out / CARD, words or card(config, summary))
    write_json(out / SUMMARY, summary)
    shutil.rmtree(out / WORK, ignore_errors=True)


def read_config(folder: Path) -> Config:
    """Raises InputError when ``folder`` holds no finished fit."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"no {name} in {folder}; expected a folder that `visfeedback rewards fit --out` wrote")
    try:
        return Config.model_validate(_json(folder / CONFIG))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{folder / CONFIG} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise InputError(f"{path} is damaged; fit the reward again") from None


def card(config: Config, summary: Mapping[str, Any]) -> str:
    """The model card: what it is, what it was fitted to, what was measured and on how much."""
    counts, prompts = summary["comparisons"], summary["prompts"]
    what = {"head": "a head on the features of", "network": "the further trained network of"}[config.kind]
    return f"""# A reward fitted to comparisons

- What: {what} `{config.base}`, by Bradley-Terry; load it with `--reward fit@FOLDER`.
- Data: {counts["train"]} comparisons of {prompts["train"]} prompts to learn from, {counts["validation"]} of \
{prompts["validation"]} to stop and calibrate on, {counts["test"]} of {prompts["test"]} to measure on; no prompt is in \
two of them. Left out: {_listed(summary["left_out"])}.
- Ties: {summary["settings"]["ties"]}. Best epoch: {summary["best_epoch"]} of {summary["epochs"]}.
- The difference of two scores is calibrated: P(a is better) = 1 / (1 + exp(score of b - score of a)); \
temperature {summary["temperature"]:.4g}.
- Made by visfeedback {VERSION}, seed {summary["settings"]["seed"]}: `{summary["command"]}`

Measured on the {counts["test"]} comparisons of prompts that were not learned from:

| | this reward | `{config.base}` |
|---|---|---|
| picks the preferred picture (ties left out) | {_share(summary["accuracy"])} | {_share(summary["base_accuracy"])} |
| 95% interval | {_interval(summary["accuracy"])} | {_interval(summary["base_accuracy"])} |
| comparisons | {_count(summary["accuracy"])} | {_count(summary["base_accuracy"])} |
| negative log likelihood, nats | {summary["nll"]["after"]:.4f} | {summary["nll"]["base"]:.4f} |
| expected calibration error | {summary["ece"]["after"]:.4f} | {summary["ece"]["base"]:.4f} |

Before its temperature was set: negative log likelihood {summary["nll"]["before"]:.4f}, calibration error \
{summary["ece"]["before"]:.4f}. The base is compared at the temperature that suits it best. The interval is Wilson's \
with comparisons of one prompt counted as hanging together.
"""


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "nothing"


def _share(found: Mapping[str, Any] | None) -> str:
    return f"{100 * found['value']:.1f}%" if found else "only ties"


def _interval(found: Mapping[str, Any] | None) -> str:
    return f"{100 * found['low']:.1f}% to {100 * found['high']:.1f}%" if found else ""


def _count(found: Mapping[str, Any] | None) -> str:
    return str(found["count"]) if found else "0"
