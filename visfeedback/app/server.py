"""The application: our routes, Gradio behind them, the guard in front; and the server that runs it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI

from visfeedback.app import pages, routes
from visfeedback.app.context import Context
from visfeedback.app.guard import LOOPBACK, Guard, answers_to
from visfeedback.app.journal import Journal
from visfeedback.plugins import InputError

PATIENCE = 3  # seconds that open streams have when the server ends


def application(context: Context, host: str = "127.0.0.1", tabs: Iterable[Any] | None = None) -> Any:
    """An ASGI application for a server bound to ``host``. ``tabs``: modules instead of those in the folder."""
    journal = Journal(context.folder, context.store.secret())
    voting = routes.Voting(context, journal)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, title=context.settings.title)
    app.include_router(routes.router(voting))
    app.include_router(pages.router(context, journal))
    app.mount("/screen", pages.files())
    for kind, handler in routes.refusals(voting).items():
        app.add_exception_handler(kind, handler)
    if context.settings.tabs:
        from visfeedback.app import blocks  # Gradio takes seconds to load

        blocks.mount(app, context, tabs)
    return Guard(app, context.people, journal, context.settings, answers_to(host, context.settings))


def is_local(host: str, hosts: Iterable[str] = ()) -> bool:
    """Whether only this machine reaches a server that is bound to ``host``, and no proxy passes others on."""
    return host in LOOPBACK and not tuple(hosts)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is said before anything is loaded; port 0 is any free one."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(kind, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InputError(f"cannot listen on {host}, port {port}: {error.strerror}; give another --port") from None
    return bound


def serve(app: Any, bound: socket.socket, context: Context, ready: Callable[[], None] = lambda: None) -> None:
    """Until Ctrl-C (KeyboardInterrupt) or SIGTERM. What was acknowledged is on disk; nothing else needs saving."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    proxied = context.settings.behind_proxy
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=PATIENCE,
        proxy_headers=proxied, forwarded_allow_ips="127.0.0.1,::1" if proxied else "", lifespan="on",
        timeout_keep_alive=65,
    )  # fmt: skip
    Server(config).run([bound])
