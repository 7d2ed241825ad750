"""A chat endpoint on this machine that answers, fails and stalls as a test tells it to: real HTTP over a socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from typing import Any


def choice(text: str, first_words: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    """An answer in the protocol's format; ``first_words``: probabilities of the first token, the likeliest first."""
    logprobs = None
    if first_words is not None:
        top = [{"token": token, "logprob": log(p) if p else -9999.0} for token, p in first_words.items()]
        logprobs = {"content": [{**top[0], "top_logprobs": top}]}
    return {"choices": [{"message": {"role": "assistant", "content": text}, "logprobs": logprobs, **more}]}


def said(payload: dict[str, Any]) -> str:
    """All texts of a request, joined."""
    turns = [turn["content"] for turn in payload["messages"]]
    return " ".join(
        turn if isinstance(turn, str) else " ".join(p["text"] for p in turn if p["type"] == "text") for turn in turns
    )


class ChatServer:
    """``troubles`` come first, one per request: (status, headers, body) or seconds to stall; then ``answer``."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.troubles: list[tuple[int, dict[str, str], Any] | float] = []
        self.answer: Callable[[dict[str, Any]], Any] = lambda payload: choice("Yes")
        self.busiest = 0
        self.url = ""
        self._busy = 0
        self._lock = threading.Lock()

    def handle(self, path: str, headers: dict[str, str], payload: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        with self._lock:
            self.requests.append(payload)
            self.headers.append(headers)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            trouble = self.troubles.pop(0) if self.troubles else None
        try:
            if path != "/v1/chat/completions":
                return 404, {}, {"error": {"message": f"no {path}"}}
            if isinstance(trouble, tuple):
                return trouble
            if trouble is not None:
                time.sleep(trouble)
            return 200, {}, self.answer(payload)
        finally:
            with self._lock:
                self._busy -= 1


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A running server; its address is ``server.url``."""
    server = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, extra, body = server.handle(self.path, headers, payload)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            try:
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), **extra}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client did not wait

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
