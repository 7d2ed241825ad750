"""Say what this machine has, what would fail, and the command that mends it.

Versions, devices, attention back ends, extras, disk and the shipped models. Exit code 3 when something required is
broken, else 0.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visfeedback.cli.console import Console, PartialFailure, parse
from visfeedback.plugins import VERSION, InputError, world
from visfeedback.types.records import Frozen

if TYPE_CHECKING:
    from packaging.requirements import Requirement

REINSTALL = 'python -m pip install -e ".[app,test]" -c constraints.txt'
SHAPES_MODELS = ("sd", "clip")
MIN_FREE_GIB = 2.0
"""A run folder with checkpoints of the shapes models stays well below."""


class DoctorSettings(Frozen):
    """`doctor` has no flags of its own."""


def run(args: list[str], console: Console) -> dict[str, Any]:
    parse(DoctorSettings, args, "visfeedback doctor", __doc__ or "")
    report = examine()
    _show(report, console)
    if report["problems"]:
        names = [problem["what"] for problem in report["problems"]]
        raise PartialFailure(f"{len(names)} required thing(s) broken: {'; '.join(names)}", report, names)
    return report


def examine() -> dict[str, Any]:
    """Everything found, as plain values; ``problems`` lists what is required and broken, with its fix."""
    packages, extras = _requirements()
    report: dict[str, Any] = {
        "visfeedback": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {r.name: _version(r.name) for r in packages},
        "devices": _devices(),
        "attention": _attention(),
        "extras": {name: _extra(name, needs) for name, needs in extras.items()},
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "shapes": {part: _model(part) for part in SHAPES_MODELS},
    }
    report["problems"] = [*_package_problems(packages), *_pair_problems(), *_other_problems(report)]
    return report


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What visfeedback needs, and what each extra needs, from its own metadata."""
    from packaging.requirements import Requirement

    core: list[Requirement] = []
    extras: dict[str, list[Requirement]] = {}
    for text in _declared("visfeedback"):
        need = Requirement(text)
        name = re.search(r"extra == ['\"]([\w-]+)['\"]", str(need.marker or ""))
        (extras.setdefault(name[1], []) if name else core).append(need)
    return core, extras


def _declared(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _fits(need: Requirement) -> bool:
    found = _version(need.name)
    return found is not None and need.specifier.contains(found, prereleases=True)


def _extra(name: str, needs: list[Requirement]) -> dict[str, Any]:
    missing = sorted(need.name for need in needs if not _fits(need))
    return {"installed": not missing, "missing": missing, "install": f'python -m pip install -e ".[{name}]"'}


def examine_extras() -> dict[str, dict[str, Any]]:
    """Extra -> whether it is installed, what is missing, how to install it; empty when we are not installed."""
    return {name: _extra(name, needs) for name, needs in _requirements()[1].items()}


def _devices() -> dict[str, Any]:
    import torch

    gpus = [
        {"name": torch.cuda.get_device_name(i), "gib": round(torch.cuda.get_device_properties(i).total_memory / 2**30)}
        for i in range(torch.cuda.device_count())
    ]
    mps = torch.backends.mps.is_available()
    return {
        "default": "cuda" if gpus else "mps" if mps else "cpu",
        "gpus": gpus,
        "mps": mps,
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "bf16": bool(gpus) and torch.cuda.is_bf16_supported(),
    }


def _attention() -> dict[str, str]:
    """Back end -> `works`, `not installed`, or why it does not work."""
    return {
        "sdpa": "works",
        "xformers": _xformers(),
        "flash": "installed" if find_spec("flash_attn") is not None else "not installed",
    }


def _xformers() -> str:
    """Whether xformers has kernels for the installed torch: one is called, since xformers installs beside any torch."""
    if find_spec("xformers") is None:
        return "not installed"
    import torch

    if not torch.cuda.is_available():
        return f"{_version('xformers')} installed; its kernels need a GPU, SDPA serves"
    try:
        from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

        probe = torch.ones(1, 8, 1, 32, device="cuda", dtype=torch.float16)
        memory_efficient_attention(probe, probe, probe)
    except (ImportError, OSError, RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        return f"no kernels for torch {torch.__version__} ({reason}); SDPA serves"
    return "works"


def _model(part: str) -> dict[str, Any]:
    """Whether a shipped model is there and every weight file opens."""
    try:
        folder = world("shapes").model_folder(part)
    except (InputError, ImportError, FileNotFoundError) as error:
        return {"ok": False, "why": str(error)}
    files = sorted(folder.rglob("*.safetensors"))
    broken = [why for why in map(_damage, files) if why]
    if not files:
        broken.append(f"no weights in {folder}")
    mib = sum(file.stat().st_size for file in files) / 2**20
    return {"ok": not broken, "why": "; ".join(broken), "mib": round(mib, 1)}


def _damage(file: Path) -> str:
    """Why a weight file cannot be read; empty when it can."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return "" if list(tensors.keys()) else f"{file.name} is empty"
    except (SafetensorError, OSError) as error:
        pointer = file.read_bytes()[:20].startswith(b"version https://git")
        return f"{file.name}: {'a pointer of Git LFS, run `git lfs pull`' if pointer else error}"


def _package_problems(needs: list[Requirement]) -> list[dict[str, str]]:
    wrong = [need for need in needs if not _fits(need)]
    problems = [
        {"what": f"{n.name} {_version(n.name) or 'is not installed'}, needed {n.specifier or 'any'}", "fix": REINSTALL}
        for n in wrong
    ]
    if not needs:
        problems.append({"what": "visfeedback itself is not installed", "fix": REINSTALL})
    return problems


def _pair_problems() -> list[dict[str, str]]:
    """torchvision is compiled for one torch: it names that one in its metadata."""
    from packaging.requirements import Requirement

    for need in map(Requirement, _declared("torchvision")):
        if need.name == "torch" and not _fits(need):
            what = f"torchvision {_version('torchvision')} belongs to torch{need.specifier}, not {_version('torch')}"
            return [{"what": what, "fix": REINSTALL}]
    return []


def _other_problems(report: dict[str, Any]) -> list[dict[str, str]]:
    problems: list[dict[str, str]] = []
    if report["disk_free_gib"] < MIN_FREE_GIB:
        what = f"only {report['disk_free_gib']} GiB free here"
        problems.append({"what": what, "fix": f"free at least {MIN_FREE_GIB:g} GiB"})
    for part, state in report["shapes"].items():
        if not state["ok"]:
            what = f"shapes:{part}: {state['why']}"
            problems.append({"what": what, "fix": "check out the repository again, or reinstall visfeedback"})
    return problems


def _show(report: dict[str, Any], console: Console) -> None:
    devices = report["devices"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['gib']} GiB)" for gpu in devices["gpus"]) or "none"
    rows: list[tuple[str, Any]] = [
        ("visfeedback", report["visfeedback"]),
        ("python", report["python"]),
        ("platform", report["platform"]),
        ("device", f"{devices['default']}; GPUs: {gpus}"),
        ("threads", f"{devices['torch_threads']} of {devices['cpu_count']} cores"),
        ("disk free", f"{report['disk_free_gib']} GiB"),
        *((f"attention {name}", state) for name, state in report["attention"].items()),
        *(
            (f"shapes:{part}", f"{s['mib']} MiB, loads" if s["ok"] else s["why"])
            for part, s in report["shapes"].items()
        ),
    ]
    console.table("this machine", ("what", "found"), rows)
    console.table("packages", ("package", "version"), [(k, v or "missing") for k, v in report["packages"].items()])
    extras = [(k, "installed" if v["installed"] else v["install"]) for k, v in report["extras"].items()]
    console.table("extras", ("extra", "installed, or how"), extras)
    if report["problems"]:
        console.table("broken", ("what", "fix"), [(p["what"], p["fix"]) for p in report["problems"]])
    else:
        console.info("everything required works")
