"""The one cookie: out of reach for scripts, not sent along from other pages, over https only where there is https."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response

from visfeedback.app.people import DAY, People


def remember(headers: MutableHeaders, request: Any, people: People, text: str) -> None:
    """Set the session cookie; an empty ``text`` takes it away."""
    scratch = Response()
    scratch.set_cookie(
        people.cookie, text, max_age=int(people.days * DAY) if text else 0, httponly=True, samesite="lax",
        secure=request.url.scheme == "https", path="/",
    )  # fmt: skip
    headers.append("set-cookie", scratch.headers["set-cookie"])
