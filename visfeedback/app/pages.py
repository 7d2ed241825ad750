"""The two pages without Gradio: Compare by itself, and the log-in."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from visfeedback.app.context import Context
from visfeedback.app.cookies import remember
from visfeedback.app.guard import address
from visfeedback.app.journal import Journal
from visfeedback.app.throttle import LogIns

STATIC = Path(__file__).parent / "static"


def files() -> StaticFiles:
    return StaticFiles(directory=STATIC)


def router(context: Context, journal: Journal, clock: Callable[[], float] = time.monotonic) -> APIRouter:
    routes, tries = APIRouter(), LogIns(clock)

    @routes.get("/health")
    def health() -> dict[str, bool]:
        return {"ok": True}

    @routes.get("/compare")
    def compare() -> Response:
        return HTMLResponse(_page("compare.html", context))

    @routes.get("/login")
    def ask() -> Response:
        if context.people.users is None:
            return RedirectResponse("./", 303)
        return HTMLResponse(_page("login.html", context))

    @routes.post("/login")
    def log_in(
        request: Request,
        name: Annotated[str, Form(max_length=64)] = "",
        password: Annotated[str, Form(max_length=1024)] = "",
    ) -> Response:
        if (wait := tries.begin(name, address(request))) > 0:
            journal.refused("log-in too often", address=address(request), path="POST /login", detail=name)
            text = f"Too many tries. Please wait {_duration(wait)}."
            return HTMLResponse(_page("login.html", context, text), 429, {"retry-after": str(int(wait) + 1)})
        found = context.people.log_in(name, password)
        if found is None:
            journal.refused("wrong password", address=address(request), path="POST /login", detail=name)
            return HTMLResponse(_page("login.html", context, "Name and password do not fit together."), 401)
        tries.passed(name, address(request))
        answer = RedirectResponse("./", 303)
        remember(answer.headers, request, context.people, found[1])
        return answer

    @routes.post("/logout")
    def log_out(request: Request) -> Response:
        answer = JSONResponse({})
        remember(answer.headers, request, context.people, "")
        return answer

    return routes


def _page(name: str, context: Context, problem: str = "") -> str:
    words = {"title": context.settings.title, "invitation": context.settings.invitation, "problem": problem}
    template = Template((STATIC / name).read_text(encoding="utf-8"))
    return template.substitute({key: escape(value) for key, value in words.items()})


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
