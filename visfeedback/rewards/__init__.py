"""Scorers of images against prompts: one file per reward, higher is better, native units.

To add one: ``visfeedback/rewards/NAME.py`` with ``load(variant="", path="", device="cpu")`` that returns a Reward
(``types/protocols.py``); the file name is the name. May import: types, shapes, preferences, vlm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visfeedback import plugins
from visfeedback.plugins import InputError

if TYPE_CHECKING:
    from visfeedback.types.protocols import Reward


def load(reference: str, device: str = "cpu") -> Reward:
    """``NAME[:VARIANT][@PATH_OR_HUB]``, for example ``shapes_clip`` or ``aesthetic:v1@weights.pt``.

    Raises InputError for an unknown name, naming the nearest one, and for whatever the reward itself refuses.
    """
    head, _, path = reference.partition("@")
    name, _, variant = head.partition(":")
    if not name:
        raise InputError(f"reward {reference!r} has no name; write NAME[:VARIANT][@PATH], for example shapes_clip")
    return plugins.load("rewards", name).load(variant=variant, path=path, device=device)
