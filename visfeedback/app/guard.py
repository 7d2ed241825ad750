"""In front of everything: which hosts, which pages, how large, how often, who. What it refuses is written down.

- Host: a page elsewhere that lets its name point to this machine (DNS rebinding) gets nothing.
- Origin: with a cookie comes the danger that other pages send requests in somebody's name; writing is for our pages.
- Size and rate: by path, address and judge. Requests that write must say how long they are.
- Role: annotators have the Compare screen; Gradio, with its tabs and its queue, is for operators.
A plain ASGI application, so that Gradio's streams pass through.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visfeedback.app.cookies import remember
from visfeedback.app.journal import Journal
from visfeedback.app.people import PREFIX, People
from visfeedback.app.settings import Collect
from visfeedback.app.throttle import Buckets
from visfeedback.plugins import InputError

SAFE = {"GET", "HEAD", "OPTIONS"}
OPEN = ("/login", "/screen/", "/health")  # without a log-in
OURS = ("/compare", "/api/", "/image/", "/logout", *OPEN)  # for annotators; everything else is Gradio's
UPLOAD = "/gradio_api/upload"
SMALL, LARGE = 2**16, 2**22  # bytes of a request to us, and to Gradio
LOOPBACK = {"localhost", "127.0.0.1", "::1"}

STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
GRADIO = (  # its pages have scripts and styles inside, and its components compile templates
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; form-action 'self'; base-uri 'self'; object-src 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class No(NamedTuple):
    """A refusal: the HTTP status, what is written down, and what is said."""

    status: int
    what: str
    why: str
    retry_after: float = 0.0


class Guard:
    def __init__(self, app: ASGIApp, people: People, journal: Journal, settings: Collect, hosts: set[str]) -> None:
        """``hosts``: names that the server answers to; empty for any."""
        self.app, self.people, self.journal, self.hosts = app, people, journal, hosts
        self._tabs = settings.tabs
        self._upload = settings.upload_mib * 2**20 + bool(settings.upload_mib) * SMALL  # a form is around the file
        self._judges = Buckets(settings.judge_rate, 12 * settings.judge_rate)
        self._addresses = Buckets(settings.address_rate, 5 * settings.address_rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            request = Request(scope)
            try:
                answer = self._answer(request)
            except InputError as error:  # the users file went missing or was damaged under us
                answer = JSONResponse({"error": str(error)}, 503)
            await (answer or self.app)(scope, receive, self._with_headers(request, send))

    def _answer(self, request: Request) -> Response | None:
        """None when the request may pass."""
        no = self._wrong_place(request) or self._too_much(request) or self._wrong_origin(request)
        session = None if no else self.people.session(request.cookies)
        if no is None and session is None and not self._is_open(request):
            return self._who_are_you(request)
        if no is None and request.url.path == "/" and not self._may_operate(request, session is None):
            return RedirectResponse("compare", 303)
        name = session.name if session else ""
        no = no or (self._not_for(request, name) if name else None)
        if no is None:
            return None
        self.write_down(request, no.what, PREFIX + name if name else "", no.why)
        headers = {"retry-after": str(int(no.retry_after) + 1)} if no.retry_after else {}
        return JSONResponse({"error": no.why}, no.status, headers)

    def _may_operate(self, request: Request, is_new: bool) -> bool:
        """Somebody new, whom nobody asks to log in, is about to get a name."""
        if not self._tabs:
            return False
        return (self.people.users is None and self.people.local) if is_new else self.people.is_operator(request)

    def write_down(self, request: Request, what: str, judge: str = "", detail: str = "") -> None:
        path = f"{request.method} {request.url.path}"
        self.journal.refused(what, judge=judge, address=address(request), path=path, detail=detail)

    def _wrong_place(self, request: Request) -> No | None:
        name = (urlsplit(f"//{request.headers.get('host', '')}").hostname or "").lower()
        if not self.hosts or name in self.hosts:
            return None
        return No(421, "host", "this server does not answer to that name; see --public-hosts")

    def _too_much(self, request: Request) -> No | None:
        if not self._addresses.take(address(request)):
            return No(429, "address too fast", "too many requests from your network; wait a little", 1)
        if request.method in SAFE:
            return None
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return No(411, "no length", "a request that writes must say its Content-Length")
        most = self._largest(request.url.path)
        return No(413, "too large", f"at most {most} bytes") if int(length) > most else None

    def _largest(self, path: str) -> int:
        if path.startswith(UPLOAD):
            return self._upload
        return SMALL if path.startswith(OURS) else LARGE

    def _wrong_origin(self, request: Request) -> No | None:
        """Browsers say where a request comes from; what says nothing is no browser and has nobody's cookies."""
        if request.method in SAFE:
            return None
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        same = origin is None or urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()
        if same and site in (None, "same-origin", "none"):
            return None
        return No(403, "origin", "only pages of this server may do that")

    def _is_open(self, request: Request) -> bool:
        if request.url.path.startswith(OPEN):
            return True
        return self.people.users is None and self._is_page(request)  # it will get a name with the page

    def _is_page(self, request: Request) -> bool:
        return request.method == "GET" and request.url.path in ("/", "/compare")

    def _who_are_you(self, request: Request) -> Response:
        if self._is_page(request):
            return RedirectResponse("login", 303)
        self.write_down(request, "nobody")
        return JSONResponse({"error": "nobody is logged in here; reload the page"}, 401)

    def _not_for(self, request: Request, name: str) -> No | None:
        if not self._judges.take(name):
            return No(429, "judge too fast", "that is too fast; wait a little", self._judges.wait(name))
        if request.url.path.startswith(OURS):
            return None
        return None if self.people.is_operator(request) else No(403, "role", "this is for operators")

    def _with_headers(self, request: Request, send: Send) -> Send:
        ours = request.url.path.startswith(OURS)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("content-security-policy", STRICT if ours else GRADIO)
                if request.url.path.startswith("/api/"):
                    headers["cache-control"] = "no-store"
                elif request.url.path.startswith("/screen/"):  # modules of two versions shall not meet in a browser
                    headers["cache-control"] = "no-cache"
                if message["status"] < 400 and self.people.users is None and self._is_page(request):
                    self._name_guest(request, headers)
            await send(message)

        return sending

    def _name_guest(self, request: Request, headers: MutableHeaders) -> None:
        if self.people.session(request.cookies) is None:
            remember(headers, request, self.people, self.people.guest())


def address(request: Request) -> str:
    return request.client.host if request.client else ""


def answers_to(host: str, settings: Collect) -> set[str]:
    """The names of a server bound to ``host``; empty (any) when it listens everywhere and nobody named it."""
    named = {name.lower() for name in settings.public_hosts}
    if host in ("0.0.0.0", "::") and not named:
        return set()
    return named | LOOPBACK | ({host.lower()} if host not in ("0.0.0.0", "::") else set())
