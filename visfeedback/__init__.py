"""visfeedback: any feedback on images becomes a better text-to-image model.

Nothing heavy is imported before it is used::

    import visfeedback as vf

    backbone = vf.load("shapes:sd")           # a diffusers model behind one small interface
    vf.train(settings, out=Path("runs/one"))  # a LoRA from preferences
    vf.score(images, "a red circle", rewards=["shapes_clip"])  # arrays by reward; images: paths, PIL images, a folder
    vf.rewards.load("shapes_clip")            # every room is a sub-package
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from visfeedback.plugins import VERSION as __version__

if TYPE_CHECKING:
    from visfeedback.backbones.load import load as load
    from visfeedback.sampling.fabric.session import fabric as fabric
    from visfeedback.sampling.generate import generate as generate
    from visfeedback.scoring.api import score as score
    from visfeedback.training.fit import fit as train

SHORTCUTS = {
    "fabric": ("sampling.fabric.session", "fabric"),
    "load": ("backbones.load", "load"),
    "generate": ("sampling.generate", "generate"),
    "score": ("scoring.api", "score"),
    "train": ("training.fit", "fit"),
}
"""Name -> module and function."""

__all__ = ["__version__", "fabric", "generate", "load", "score", "train"]


def __getattr__(name: str) -> Any:
    """Shortcuts first, then rooms (``vf.rewards``), each imported at its first use."""
    if name in SHORTCUTS:
        module, function = SHORTCUTS[name]
        return getattr(importlib.import_module(f"{__name__}.{module}"), function)
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    import pkgutil

    return sorted({*globals(), *SHORTCUTS, *(m.name for m in pkgutil.iter_modules(__path__))})
