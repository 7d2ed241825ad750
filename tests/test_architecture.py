"""The map of the house: what a room may import, and what it never loads.

All imports count, also those inside functions, except in ``cli``; ``TYPE_CHECKING`` blocks do not.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import visfeedback

PACKAGE = Path(visfeedback.__file__).parent
RECORDS = {"types.records", "types.files"}
"""What rooms without tensors may use: the records and atomic writing."""

ROOMS: dict[str, set[str]] = {
    "types": set(),
    "config": set(),
    "plugins": set(),
    "store": RECORDS,
    "prompts": RECORDS,
    "preferences": RECORDS,
    "report": {"types"},
    "diffusion": {"types"},
    "shapes": {"types"},
    "vlm": {"types"},
    "rewards": {"types", "shapes", "preferences", "vlm"},
    "scoring": {"types", "rewards", "store", "report"},
    "backbones": {"types", "diffusion"},
    "sampling": {"types", "diffusion"},
    "feedback": {"types", "store", "preferences", "vlm", "shapes"},
    "methods": {"types", "diffusion", "sampling"},
    "training": {
        "types", "config", "store", "prompts", "sampling", "rewards", "preferences", "methods", "backbones", "report",
    },
    "evaluation": {
        "types", "store", "rewards", "scoring", "sampling", "preferences", "shapes", "backbones", "report",
    },
    "app": {*RECORDS, "config", "store", "prompts", "feedback", "preferences", "report"},
}  # fmt: skip
"""Room -> what it may import besides itself, `plugins` and other people's packages."""

ROOMS["loops"] = {*ROOMS} - {"app"}

NEVER: dict[str, set[str]] = {
    "types.records": {"torch"},
    "types.files": {"torch"},
    "config": {"torch"},
    "plugins": {"torch", "pydantic"},
    "store": {"torch", "gradio"},
    "prompts": {"torch", "gradio"},
    "preferences": {"torch", "gradio"},
    "diffusion": {"diffusers"},
    "feedback": {"gradio"},
    "methods": {"diffusers", "peft", "accelerate"},
    "app": {"torch"},
}
"""Room or module -> other people's packages that it never imports."""


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """Absolute names of everything ``source`` imports; ``from a import b`` gives ``a.b``."""
    base = module if is_package else module.rpartition(".")[0]
    found: set[str] = set()
    for node in running(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = base.split(".")[: len(base.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*up, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those that only a type checker sees."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (node for other in child.orelse for node in (other, *running(other)))
        else:
            yield child
            yield from running(child)


def under(name: str, prefixes: set[str]) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in prefixes)


def violations(module: str, names: set[str]) -> list[str]:
    """What ``module`` (``visfeedback.methods.dpo``) imports against the map."""
    inside = module.removeprefix("visfeedback.")
    room = inside.partition(".")[0]
    if room in {"cli", "__main__", "visfeedback"}:  # the front door, and `visfeedback/__init__.py` has its own test
        return []
    if room not in ROOMS:
        return [f"{module}: the map has no room {room!r}; add it to ROOMS"]
    banned = {name for key, names_ in NEVER.items() if under(inside, {key}) for name in names_}
    allowed = {room, "plugins", *ROOMS[room]}
    wrong = [name for name in names if under(name, banned)]
    ours = {name: name.removeprefix("visfeedback").lstrip(".") for name in names if under(name, {"visfeedback"})}
    wrong += [name for name, short in ours.items() if not under(short, allowed)]
    return sorted(f"{module} imports {name}" for name in wrong)


def modules() -> list[tuple[str, Path]]:
    return [(_dotted(path), path) for path in sorted(PACKAGE.rglob("*.py"))]


def _dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_import_follows_the_map() -> None:
    wrong: list[str] = []
    for module, path in modules():
        wrong += violations(module, imports(path.read_text(), module, path.name == "__init__.py"))
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("visfeedback.methods.x", "from visfeedback.rewards import mix", "rewards.mix"),
        ("visfeedback.methods.x", "from visfeedback import rewards", "visfeedback.rewards"),
        ("visfeedback.methods.x", "def f():\n    import peft", "peft"),
        ("visfeedback.methods.x", "from ..store import open", "store.open"),
        ("visfeedback.store.x", "from visfeedback.types.batches import Pairs", "types.batches.Pairs"),
        ("visfeedback.store.x", "if True:\n    import torch.nn", "torch.nn"),
        ("visfeedback.types.records", "from torch import Tensor", "torch.Tensor"),
        ("visfeedback.training.x", "import visfeedback.evaluation.compare", "evaluation.compare"),
        ("visfeedback.plugins", "import visfeedback.config", "config"),
        ("visfeedback.kitchen.x", "", "no room 'kitchen'"),
    ],
)
def test_a_violation_is_found(module: str, source: str, complaint: str) -> None:
    """The map would be worth nothing if a wrong import passed it."""
    (found,) = violations(module, imports(source, module, is_package=False))
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("visfeedback.methods.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import diffusers"),
        ("visfeedback.methods.x", "from . import losses\nfrom visfeedback.plugins import InputError\nimport torch"),
        ("visfeedback.store.x", "from visfeedback.types.records import Sample\nfrom visfeedback.types import files"),
        ("visfeedback.cli.x", "from visfeedback.app import page"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(module, imports(source, module, is_package=False)) == []


def test_every_room_says_what_lives_there() -> None:
    rooms = [PACKAGE / room / "__init__.py" for room in ROOMS if room != "types" and (PACKAGE / room).is_dir()]
    rooms += [PACKAGE / f"{room}.py" for room in ROOMS if (PACKAGE / f"{room}.py").is_file()]
    for path in rooms:
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert "ay import" in about or "mports" in about, f"{path.parent.name}/{path.name}: say what it may import"


@pytest.mark.parametrize("room", ["", "store", "config", "types.records", "types.files", "app", "cli"])
def test_importing_leaves_torch_unloaded(room: str) -> None:
    """The app and the store start in a second, and `visfeedback --help` at once."""
    name = f"visfeedback.{room}".rstrip(".")
    if room == "app" and find_spec(name) is None:
        return
    heavy = "{'torch', 'diffusers', 'transformers', 'gradio'}" if room != "app" else "{'torch'}"
    code = f"import sys, {name}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_only_the_standard_library() -> None:
    """`visfeedback --help` must be instant: not even pydantic and rich are loaded."""
    code = (
        "import sys; from visfeedback.cli import main; assert main(['--help']) == 0; "
        "assert not {'torch', 'pydantic', 'rich', 'tyro', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
