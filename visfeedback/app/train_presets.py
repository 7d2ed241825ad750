"""From a model and a few knobs to the TOML that `visfeedback train` reads.

The preset is the one of `configs/dpo` that was written for the model, or for its family; the knobs are laid over it.
May import: plugins, config, types.records, types.files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, field_validator
from sqlalchemy import make_url

from visfeedback import config, plugins
from visfeedback.plugins import InputError
from visfeedback.types.files import write_atomic
from visfeedback.types.records import Frozen

FAMILIES = {
    "StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl", "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
}  # fmt: skip
"""Class of a pipeline -> the file in configs/dpo with numbers for such models."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
PREVIEWS = 6
"""pictures that are drawn on the way"""
LOOKS = 5
"""how often"""
HOLD_OUT_FROM = 40
"""With so many prompts a tenth of them is kept out, so that the curve of held-out pairs can be believed."""


class Knobs(Frozen):
    """What a person may choose on the page."""

    name: str
    """of the run and its folder"""
    steps: int = Field(default=600, ge=1, le=200_000)
    """optimizer steps"""
    beta: float = Field(default=2000.0, gt=0, le=1e6, allow_inf_nan=False)
    """strength of the pull to the base model: smaller learns more and drifts more"""
    rank: int = Field(default=16, ge=1, le=512)
    """width of the LoRA"""

    @field_validator("name")
    @classmethod
    def _a_word(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r:.40} is no name; expected letters, digits, - and _, at most 64")
        return name


def knobs(name: str, steps: Any, beta: Any, rank: Any) -> Knobs:
    """Checked values of the page. InputError in one line."""
    return config.build(Knobs, {"name": name, "steps": steps, "beta": beta, "rank": rank}, "training")


def folder() -> Path:
    """`configs` here, else beside the package."""
    here = Path("configs")
    return here if here.is_dir() else Path(__file__).parents[2] / "configs"


def preset_for(model: str, presets: Path | None = None) -> Path | None:
    """The preset for a model; None where the program was installed without presets.

    Of several for the same model the quick one. InputError when the model's family has none.
    """
    known = sorted((presets or folder()).glob("dpo/*.toml"))
    if not known:
        return None
    own = [path for path in known if config.read_toml(path).get("model", {}).get("id") == model]
    if own:
        return next((path for path in own if "quick" in path.stem), own[0])
    kind = _pipeline_class(model)
    stem = FAMILIES.get(kind or "StableDiffusionPipeline")
    found = next((path for path in known if path.stem == stem), None)
    if found is None:
        names = ", ".join(path.stem for path in known)
        raise InputError(f"no preset for {model} ({kind}); expected a model for one of: {names}")
    return found


def _pipeline_class(model: str) -> str:
    """Class of the pipeline, read from model_index.json; empty for single files and models not on this machine."""
    reference = plugins.split_reference(model)
    if reference is not None:
        index = plugins.world(reference[0]).model_folder(reference[1]) / "model_index.json"
    elif Path(model).is_dir():
        index = Path(model) / "model_index.json"
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "model_index.json") if model.count("/") == 1 else None
        index = Path(cached) if isinstance(cached, str) else Path()
    try:
        return str(json.loads(index.read_text(encoding="utf-8")).get("_class_name", "")) if index.is_file() else ""
    except (OSError, ValueError):
        return ""


def defaults(model: str, presets: Path | None = None) -> dict[str, float]:
    """steps, beta and rank of the model's preset, else the program's own."""
    path = preset_for(model, presets)
    table = config.read_toml(path) if path else {}
    blank = Knobs(name="x")
    return {
        "steps": table.get("optim", {}).get("steps", blank.steps),
        "beta": table.get("method", {}).get("beta", blank.beta),
        "rank": table.get("lora", {}).get("rank", blank.rank),
    }


def source_of(url: str) -> tuple[str, dict[str, str]]:
    """A store's URL for a process elsewhere, without a password, and the environment that has it (PostgreSQL's own
    way): what a run writes down may be shown and published."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return f"sqlite:///{Path(parsed.database or '').absolute()}", {}
    secret = parsed.password or str(parsed.query.get("password") or "")
    bare = parsed._replace(password=None).difference_update_query(["password"])
    return bare.render_as_string(hide_password=False), {"PGPASSWORD": str(secret)} if secret else {}


def settings(model: str, store: str, chosen: Knobs, pairs: int, prompts: int, path: Path | None) -> dict[str, Any]:
    """The tables of a run: the preset ``path`` with the knobs, sized for ``pairs`` over ``prompts``."""
    base = config.read_toml(path) if path else {"method": {"name": "dpo"}}
    optim = base.get("optim", {})
    batch = int(optim.get("batch_size", 8))
    sized = {
        "model": {"id": model},
        "data": {"store": store, "holdout": 0.1 if prompts >= HOLD_OUT_FROM else 0.0},
        "method": {"beta": chosen.beta},
        "optim": {
            "steps": chosen.steps, "batch_size": max(1, min(batch, pairs)),
            "warmup": min(int(optim.get("warmup", 0)), chosen.steps // 10),
        },
        "lora": {"rank": chosen.rank},
        "engine": {"drift_every": _part(chosen.steps, 20), "checkpoint_every": max(10, min(100, chosen.steps // 10))},
        "eval": {"count": PREVIEWS, "every": _part(chosen.steps, LOOKS)},
    }  # fmt: skip
    return config.merge(base, sized)


def _part(steps: int, parts: int) -> int:
    return max(1, steps // parts)


def write(path: Path, tables: dict[str, Any]) -> Path:
    """The file that is handed to `visfeedback train`."""
    return write_atomic(path, tomli_w.dumps(tables))
