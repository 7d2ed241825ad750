"""Who is asking: somebody from the users file, or, without one, a browser with a random name of its own."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from visfeedback.app.passwords import User, Users
from visfeedback.app.sessions import Session, Signer
from visfeedback.store.desk import Refused

DAY = 86400.0
PREFIX = "human:"


class People:
    """``users``: None when nobody needs to log in. ``local``: only this machine reaches the server, so that whoever
    does is the operator."""

    def __init__(self, secret: str, users: Users | None, local: bool, days: float = 30.0, label: str = "") -> None:
        self.users = users
        self.local = local
        self.days = days
        self._signer = Signer(secret)
        # two collections on one machine, at different ports, share the browser's cookies
        self.cookie = f"visfeedback_{hashlib.sha256(f'{secret}{label}'.encode()).hexdigest()[:8]}"

    def judge(self, request: Any) -> str:
        """``human:ada``, from the cookies of a request of Gradio or FastAPI. Raises Refused when there is nobody."""
        session = self.session(request.cookies)
        if session is None:
            raise Refused("nobody is logged in here; reload the page")
        return PREFIX + session.name

    def is_operator(self, request: Any) -> bool:
        session = self.session(request.cookies)
        if session is None:
            return False
        if self.users is None:
            return self.local
        return self.users.all()[session.name].role == "operator"

    def session(self, cookies: Any) -> Session | None:
        """The standing session of these cookies; None for forged, old and withdrawn ones."""
        found = self._signer.read(cookies.get(self.cookie) or "", self.days * DAY)
        if found is None or self.users is None:
            return found if found is not None and not found.fingerprint else None
        user = self.users.all().get(found.name)
        return found if user is not None and found.fingerprint == user.fingerprint else None

    def log_in(self, name: str, password: str) -> tuple[User, str] | None:
        """The user and the text of the cookie; None when name and password do not fit."""
        user = self.users.check(name, password) if self.users else None
        return (user, self._signer.issue(user.name, user.fingerprint)) if user else None

    def guest(self) -> str:
        """The cookie of somebody new, for a server without users."""
        return self._signer.issue(f"guest-{secrets.token_hex(4)}")
