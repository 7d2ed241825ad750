"""List the presets: what each trains, on which model, and what it needs.

Presets are the TOML files under ``configs/``; the first comment line of each is its description.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visfeedback.cli.console import Console, parse
from visfeedback.config import read_toml
from visfeedback.plugins import InputError, split_reference, world
from visfeedback.types.records import Frozen

PROGRAM_GIB = 1.0
"""torch, diffusers and Python themselves."""
COPIES = 4
"""Rough: fp32 weights (twice the bytes of half-precision files), activations and caches."""


class PresetsSettings(Frozen):
    """Which presets to list."""

    folder: Path | None = None
    """folder of presets; `configs` here, else the one beside the package"""


def run(args: list[str], console: Console) -> dict[str, Any]:
    settings = parse(PresetsSettings, args, "visfeedback presets", __doc__ or "")
    folder = settings.folder or default_folder()
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; presets are the TOML files under configs/ of the source tree")
    presets = [describe(path) for path in sorted(folder.rglob("*.toml"))]
    console.table("presets", ("preset", "what it does; method, model, memory"), map(_row, presets))
    return {"presets": presets}


def _row(preset: Mapping[str, str]) -> tuple[str, str]:
    """Two columns: the path must not be broken, and 80 letters are soon full."""
    with_what = ", ".join(preset[name] for name in ("method", "model", "needs") if preset[name])
    return preset["preset"], "\n".join(part for part in (preset["about"], with_what) if part)


def default_folder() -> Path:
    here = Path("configs")
    return here if here.is_dir() else Path(__file__).parents[2] / "configs"


def describe(path: Path) -> dict[str, str]:
    """One preset as texts: its path, method or program, model, what the model still needs, and its description."""
    data = read_toml(path)
    model = str(_table(data, "model").get("id", ""))
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return {
        "preset": str(path),
        "method": str(_table(data, "method").get("name") or _table(data, "loop").get("name", "")),
        "model": model,
        "needs": needs(model) if model else "",
        "about": first.lstrip("# ").strip() if first.startswith("#") else "",
    }


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = data.get(name, {})
    return table if isinstance(table, Mapping) else {}


def needs(model: str) -> str:
    """`about 1.1 GiB of memory`, or that the model is not on this machine yet."""
    try:
        folder = _folder(model)
    except InputError as error:
        return str(error)
    if folder is None:
        return "a download (huggingface.co)"
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return f"about {PROGRAM_GIB + COPIES * weights / 2**30:.1f} GiB of memory"


def _folder(model: str) -> Path | None:
    """Where the model lies on this machine; None when it does not."""
    reference = split_reference(model)
    if reference is not None:
        return world(reference[0]).model_folder(reference[1])
    if Path(model).exists():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(model, "model_index.json") if "/" in model else None
    return Path(index).parent if isinstance(index, str) else None
