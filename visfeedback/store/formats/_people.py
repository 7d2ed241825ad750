"""Who judged, under another name: files that leave the house carry pseudonyms of people."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visfeedback.store.core import Store

People = Callable[[str], str]
"""judge -> the name that is written"""


def keep(judge: str) -> str:
    """Names as they are."""
    return judge


def pseudonyms(key: str) -> People:
    """`human:ada` becomes `human:` and 16 hex digits of HMAC-SHA256(key, name): the same person stays the same.

    Without the key nobody can check a guessed name. Programs and models (`vlm:`, `reward:`, ...) keep their names.
    """

    def name(judge: str) -> str:
        kind, colon, who = judge.partition(":")
        if kind != "human" or not colon:
            return judge
        return f"human:{hmac.new(key.encode(), who.encode(), hashlib.sha256).hexdigest()[:16]}"

    return name


def of_store(store: Store) -> People:
    """Pseudonyms under the store's own secret: stable over exports, unlinkable between stores."""
    return pseudonyms(store.secret())
