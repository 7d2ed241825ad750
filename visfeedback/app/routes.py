"""What the Compare screen asks for: the next question, that it is on the screen, the answer, undo, images, progress.

Plain functions over the desk, run in threads. An answer is on disk before it is acknowledged, and its acknowledgement
brings the next question along. A refusal of the desk is a 409 with its one line, an answer that does not fit its task
a 422; both are written down.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field

from visfeedback.app import waiting
from visfeedback.app.context import Context
from visfeedback.app.guard import address
from visfeedback.app.journal import Journal
from visfeedback.app.pictures import Pictures
from visfeedback.app.questions import Questions
from visfeedback.plugins import InputError
from visfeedback.store.desk import Refused
from visfeedback.store.images import BadImage
from visfeedback.store.tasks import Answer, Presentation
from visfeedback.types.records import Frozen

Token = Annotated[str, Field(min_length=1, max_length=64)]
FOREVER = "private, max-age=31536000, immutable"  # what a token shows never changes


class Have(Frozen):
    have: tuple[Token, ...] = Field(default=(), max_length=16)
    """questions that the screen holds already"""


class Shown(Frozen):
    token: Token


class Vote(Have):
    token: Token
    answer: Answer


class Undo(Have):
    token: Token | None = None


class Agreement(Frozen):
    agree: bool


class Voting:
    """The routes' state: one collection's context, its journal, and the pictures that are ready."""

    def __init__(self, context: Context, journal: Journal) -> None:
        self.context, self.journal = context, journal
        self.questions, self.pictures = Questions(context.store), Pictures(context.settings.max_side)
        # SQLite lets writers wait by polling, up to 0.1 s late; inside one process they can queue up properly
        is_sqlite = context.store.url.get_backend_name() == "sqlite"
        self._one_writer = threading.Lock() if is_sqlite else contextlib.nullcontext()

    def judge(self, request: Request) -> str:
        """Who is asking and has agreed to what there is to agree to."""
        judge = self.context.who(request)
        if not self.journal.has_agreed(judge, self.context.settings.consent):
            raise Refused("please read and accept the text on the first page; reload it")
        return judge

    def state(self, request: Request) -> dict[str, Any]:
        """Words and habits of this collection, and how far it is."""
        judge, settings = self.context.who(request), self.context.settings
        agreed = self.journal.has_agreed(judge, settings.consent)
        words = settings.model_dump(include={"title", "instructions", "invitation", "blur", "ask_note"})
        return words | {
            "judge": judge.partition(":")[2], "can_log_out": self.context.people.users is not None,
            "consent": "" if agreed else settings.consent, "progress": self.progress(request),
        }  # fmt: skip

    def progress(self, request: Request) -> dict[str, int]:
        found = self.context.desk.progress(self.context.who(request))
        return {name: found[name] for name in ("wanted", "answered", "mine")}

    def agree(self, body: Agreement, request: Request) -> dict[str, Any]:
        if body.agree:
            self.journal.agree(self.context.who(request), self.context.settings.consent)
        return {}

    def next(self, body: Have, request: Request) -> dict[str, Any]:
        return self._next(self.judge(request), body.have)

    def shown(self, body: Shown, request: Request) -> dict[str, Any]:
        judge = self.judge(request)
        with self._one_writer:
            self.context.desk.shown(body.token, judge)
        return {}

    def vote(self, body: Vote, request: Request) -> dict[str, Any]:
        judge = self.judge(request)
        with self._one_writer:
            receipt = self.context.desk.answer(body.token, judge, body.answer)
        return {"again": receipt.again} | self._next(judge, body.have)

    def undo(self, body: Undo, request: Request) -> dict[str, Any]:
        with self._one_writer:
            back = self.context.desk.undo(self.judge(request), body.token)
        return {"question": self.questions.page(back) if back else None}

    def image(self, token: str, position: int, request: Request) -> Response:
        shown = self.context.desk.find(token, self.judge(request))
        data = self.pictures.get(self.questions.picture(shown, position))
        return Response(data, media_type="image/png", headers={"cache-control": FOREVER})

    def _next(self, judge: str, have: tuple[str, ...]) -> dict[str, Any]:
        with self._one_writer:
            shown: Presentation | None = self.context.desk.next(judge, have)
        if shown is not None:
            return {"question": self.questions.page(shown)}
        return {"question": None, "waiting": waiting.reason(self.context, judge)}


def router(voting: Voting) -> APIRouter:
    routes = APIRouter()
    for name in ("next", "shown", "vote", "undo", "agree"):
        routes.add_api_route(f"/api/{name}", getattr(voting, name), methods=["POST"])
    for name in ("state", "progress"):
        routes.add_api_route(f"/api/{name}", getattr(voting, name), methods=["GET"])
    routes.add_api_route("/image/{token}/{position}", voting.image, methods=["GET"], response_class=Response)
    return routes


def refusals(voting: Voting) -> dict[type[Exception], Callable[[Request, Any], Response]]:
    """Exception -> what the browser hears; each is written down."""

    def answer(status: int, what: str, say: Callable[[Any], str]) -> Callable[[Request, Any], Response]:
        def handle(request: Request, error: Any) -> Response:
            session = voting.context.people.session(request.cookies)
            voting.journal.refused(
                what, judge=f"human:{session.name}" if session else "", address=address(request),
                path=f"{request.method} {request.url.path}", detail=say(error),
            )  # fmt: skip
            return JSONResponse({"error": say(error)}, status)

        return handle

    return {
        Refused: answer(409, "refused", str),
        BadImage: answer(404, "image", lambda error: "this image cannot be shown; skip the question"),
        InputError: answer(422, "wrong answer", str),
        RequestValidationError: answer(422, "malformed", _malformed),
    }


def _malformed(error: RequestValidationError) -> str:
    """Where and what, without repeating what came."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:200]
