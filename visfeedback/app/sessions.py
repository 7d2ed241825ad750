"""Who a browser is, in a signed cookie: nothing is kept on the server, and a restart logs nobody out.

The text is `payload.signature`, the signature HMAC-SHA256 under a key that belongs to the store. A log-in carries the
fingerprint of the password it was made with: a new password, another role or a removed line ends it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import NamedTuple

LONGEST = 1024  # characters of a cookie that is worth looking at


class Session(NamedTuple):
    name: str
    began: float
    """seconds since 1970"""
    fingerprint: str
    """of the user's password; empty for a guest"""


class Signer:
    def __init__(self, secret: str) -> None:
        self._key = hmac.digest(secret.encode(), b"visfeedback: sessions of the app", "sha256")

    def issue(self, name: str, fingerprint: str = "") -> str:
        body = json.dumps([name, round(time.time(), 3), fingerprint, secrets.token_hex(4)], ensure_ascii=False)
        payload = base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")
        return f"{payload}.{self._sign(payload)}"

    def read(self, text: str, longest_seconds: float) -> Session | None:
        """None when it is forged, damaged or too old."""
        payload, dot, signature = text.partition(".")
        if (
            not dot
            or len(text) > LONGEST
            or not text.isascii()
            or not hmac.compare_digest(signature, self._sign(payload))
        ):
            return None
        name, began, fingerprint, _ = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return Session(name, began, fingerprint) if 0 <= time.time() - began + 60 <= longest_seconds + 60 else None

    def _sign(self, payload: str) -> str:
        return hmac.new(self._key, payload.encode(), hashlib.sha256).hexdigest()
