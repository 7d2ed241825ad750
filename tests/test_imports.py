"""Every module can be imported: a muted name error would otherwise hide until somebody needs the file."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import visfeedback

MODULES = [
    m.name for m in pkgutil.walk_packages(visfeedback.__path__, "visfeedback.") if not m.name.endswith("__main__")
]


@pytest.mark.parametrize("name", [name for name in MODULES if ".migrations" not in name])
def test_module_imports(name: str) -> None:
    """Alembic runs its own migrations, in an environment of its own."""
    importlib.import_module(name)


def test_rooms_are_attributes() -> None:
    """``vf.config`` works without importing it first; a room that does not exist is an AttributeError."""
    assert visfeedback.config.read_toml is importlib.import_module("visfeedback.config").read_toml
    with pytest.raises(AttributeError, match="kitchen"):
        _ = visfeedback.kitchen


def test_shortcuts_lead_to_functions() -> None:
    for name in visfeedback.SHORTCUTS:
        assert callable(getattr(visfeedback, name))
    assert {"load", "train", "generate", "rewards"} <= set(dir(visfeedback))
