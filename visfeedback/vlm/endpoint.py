"""A vision-language model behind an OpenAI-compatible chat endpoint (``POST BASE_URL/chat/completions``).

vLLM, SGLang, llama.cpp, Ollama, LM Studio and the hosted services speak it. Images go as data URLs, several questions
at once; answers may be kept on disk. The key comes from the environment only (``VISFEEDBACK_API_KEY``; for openai.com
also ``OPENAI_API_KEY``, which is sent to no other host) and is written nowhere.
Left out: streaming, tools, the Responses API. May import: types.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image
from pydantic import Field

from visfeedback.plugins import InputError
from visfeedback.types.records import Frozen, Origin
from visfeedback.vlm.answers import Answers, key_of
from visfeedback.vlm.images import data_url
from visfeedback.vlm.questions import Question, Reply
from visfeedback.vlm.wire import Refused, Unanswered, Unsuitable, post

REFERENCE = re.compile(r"(?P<model>.+?)@(?P<url>https?://.*)", re.DOTALL)
KEY_VARIABLE, OPENAI_VARIABLE, OPENAI_HOST = "VISFEEDBACK_API_KEY", "OPENAI_API_KEY", "openai.com"
TOP, FEW = 20, 5  # as many first words as the protocol allows to ask for, and as many as careful hosts give
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
SILENT = 16
"""So many questions in a row without any answer: the host is down, and a thousand more would wait for it in vain."""
INSTEAD = "use a server that has them (vLLM does) or weights on this machine, local:FOLDER"
SPACES = " \t\n▁ĠĊ"  # how tokenizers write a leading space


class EndpointSettings(Frozen):
    """How an endpoint is asked."""

    timeout: float = Field(default=120.0, gt=0)
    """seconds until an answer counts as missing"""
    attempts: int = Field(default=5, ge=1)
    """how often one question is sent at most"""
    concurrency: int = Field(default=8, ge=1)
    """questions under way at once"""
    image_format: Literal["png", "jpeg"] = "png"
    """png keeps the pixels; jpeg (quality 95) is about a fifth of the bytes"""


def is_endpoint(reference: str) -> bool:
    """Whether a reference names an endpoint: ``MODEL@http://...`` or ``MODEL@https://...``."""
    return REFERENCE.fullmatch(reference) is not None


def open_endpoint(
    reference: str,
    settings: EndpointSettings | None = None,
    cache: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Endpoint:
    """``MODEL@BASE_URL``, for example ``gpt-4o@https://api.openai.com/v1``. Sends nothing yet.

    Raises InputError for another form, and for an address that holds a password or a query (they would be recorded).
    """
    found = REFERENCE.fullmatch(reference)
    if found is None:
        raise InputError(
            f"{reference!r} names no endpoint; write MODEL@BASE_URL, for example my-vlm@http://host:8000/v1"
        )
    return Endpoint(found["model"], found["url"], settings or EndpointSettings(), Answers(cache), sleep)


class Endpoint:
    """``Vlm`` over HTTP."""

    def __init__(
        self, model: str, url: str, settings: EndpointSettings, answers: Answers, sleep: Callable[[float], None]
    ) -> None:
        try:
            import httpx
        except ModuleNotFoundError:
            raise InputError("endpoints need httpx; type pip install 'visfeedback[vlm]'") from None
        base = _base(url)
        self.name = f"{model}@{base}"
        self.origin = Origin(model=self.name, dtype="")
        self._model = model
        self._url = f"{base}/chat/completions"
        self._settings = settings
        self._answers = answers
        self._sleep = sleep
        self._limit = "max_tokens"  # newer models of OpenAI want another word for it, and their own temperature
        self._fixed: dict[str, Any] = {"temperature": 0}
        self._top = TOP
        self._silent = 0  # questions in a row that got no answer at all
        host = httpx.URL(base).host
        self._key = _key(host)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # proxies of the environment lead out of this machine, not to it
        self._client = httpx.Client(timeout=settings.timeout, headers=headers, trust_env=host not in LOOPBACK)

    def ask(self, questions: Sequence[Question], max_tokens: int = 512) -> list[Reply]:
        """One reply with ``text`` per question, at temperature 0."""
        return self._all(questions, max_tokens, False, _text)

    def probability(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Reply]:
        """One reply with ``chances`` per question, from the log-probabilities of the first generated token.

        Tokens that differ from an answer in case or in spaces around it count for it: their probabilities are added.
        An answer outside the 20 likeliest gets the most it can have: the smaller of the last one's probability and
        what the 20 leave over. When none of the answers is among the 20, that question failed.
        Raises InputError when the endpoint sends no log-probabilities.
        """
        return self._all(questions, 1, True, lambda choice: _chances(choice, answers, self.name))

    def _all(
        self, questions: Sequence[Question], limit: int, logprobs: bool, read: Callable[[dict[str, Any]], Reply]
    ) -> list[Reply]:
        """All questions, several at a time; an image that several questions share is encoded once."""
        images = {id(image): image for question in questions for image in question.images}
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            urls = dict(zip(images, pool.map(self._encode, images.values()), strict=True))
            running = [pool.submit(self._one, _messages(q, urls), limit, logprobs, read) for q in questions]
            try:
                return [future.result() for future in running]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _encode(self, image: Image) -> str:
        return data_url(image, self._settings.image_format)

    def _one(
        self, messages: list[dict[str, Any]], limit: int, logprobs: bool, read: Callable[[dict[str, Any]], Reply]
    ) -> Reply:
        asked = {"model": self._model, "messages": messages, "limit": limit, "logprobs": logprobs}
        key = key_of(self._url, asked)
        try:
            kept = self._answers.find(key)
            if kept is not None:
                return read(kept)
            choice = _choice(self._send(messages, limit, logprobs))
            reply = read(choice)
        except Refused as problem:
            self._count_silence(problem)
            return Reply(error=self._hide(str(problem)))
        except InputError as problem:
            raise InputError(self._hide(str(problem))) from None
        self._silent = 0
        self._answers.keep(key, choice)
        return reply

    def _count_silence(self, problem: Refused) -> None:
        """Raises InputError when the host answers nobody any more."""
        self._silent = self._silent + 1 if isinstance(problem, Unanswered) else 0
        if self._silent >= SILENT:
            self._silent = 0  # whoever goes on asks again
            said = self._hide(str(problem))
            raise InputError(f"{self.name} answered none of {SILENT} questions ({said}); see to it and run again")

    def _send(self, messages: list[dict[str, Any]], limit: int, logprobs: bool) -> dict[str, Any]:
        """Sends, and sends again in the way that the host says it wants."""
        while True:
            payload = {"model": self._model, "messages": messages, self._limit: limit, **self._fixed}
            if logprobs:
                payload |= {"logprobs": True, "top_logprobs": self._top}
            try:
                return post(self._client, self._url, payload, self._settings.attempts, self._sleep)
            except Unsuitable as problem:
                if not self._learn(str(problem), payload):
                    raise

    def _learn(self, problem: str, sent: dict[str, Any]) -> bool:
        """Whether the complaint is about something that can be written otherwise; if so it will be.

        Raises InputError for a host or model without log-probabilities.
        """
        if "max_completion_tokens" in problem and "max_tokens" in sent:
            self._limit = "max_completion_tokens"
        elif "temperature" in problem and "temperature" in sent:
            self._fixed = {}
        elif "top_logprobs" in problem and sent.get("top_logprobs", 0) > FEW:
            self._top = FEW
        elif "logprobs" in problem and "logprobs" in sent:
            raise InputError(f"{self.name} gives no log-probabilities ({problem}); {INSTEAD}")
        else:
            return False
        return True

    def _hide(self, message: str) -> str:
        """Some hosts repeat the key in their complaint."""
        return message.replace(self._key, "***") if self._key else message


def _base(url: str) -> str:
    import httpx

    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        raise InputError("the address of the endpoint is no URL; write MODEL@http://host:8000/v1") from None
    if parts.userinfo or parts.query or parts.fragment:
        raise InputError(
            "the address of the endpoint holds a password or a query, which would be recorded; "
            f"put the key into {KEY_VARIABLE} and write MODEL@http://host:8000/v1"
        )
    if not parts.host:
        raise InputError("the address of the endpoint has no host; write MODEL@http://host:8000/v1")
    return url.rstrip("/").removesuffix("/chat/completions")


def _key(host: str) -> str:
    own = os.environ.get(KEY_VARIABLE, "").strip()
    if own or not (host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}")):
        return own
    return os.environ.get(OPENAI_VARIABLE, "").strip()


def _messages(question: Question, urls: dict[int, str]) -> list[dict[str, Any]]:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": urls[id(part)]}}
        for part in question.parts
    ]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return [{"role": "system", "content": question.system}, *turns] if question.system else turns


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    """The part of an answer that is read and kept."""
    try:
        choice = answer["choices"][0]
        return {"message": {"content": choice["message"].get("content")}, "logprobs": choice.get("logprobs"),
                "finish_reason": choice.get("finish_reason"), "refusal": choice["message"].get("refusal")}  # fmt: skip
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Refused("the answer holds no choices[0].message") from None


def _text(choice: dict[str, Any]) -> Reply:
    text = choice["message"]["content"]
    if choice["refusal"] or choice["finish_reason"] == "content_filter":
        raise Refused(f"the model refuses: {' '.join(str(choice['refusal'] or 'content filter').split())[:200]}")
    if not isinstance(text, str) or not text.strip():
        raise Refused(f"the answer is empty (finish_reason {choice['finish_reason']})")
    return Reply(text=text)


def _chances(choice: dict[str, Any], answers: Sequence[str], name: str) -> Reply:
    first, listed = _first_words(choice, name)
    seen = {answer: [p for word, p in listed.items() if _plain(word) == _plain(answer)] for answer in answers}
    if not any(seen.values()):
        words = " nor ".join(repr(answer) for answer in answers)
        raise Refused(f"neither {words} among the {len(listed)} likeliest first words; it begins with {first!r}")
    most = max(0.0, min(min(listed.values()), 1 - sum(listed.values())))
    return Reply(text=first, chances={a: min(1.0, sum(p)) if p else most for a, p in seen.items()})


def _first_words(choice: dict[str, Any], name: str) -> tuple[str, dict[str, float]]:
    """The word with which the answer begins, and the probabilities of all that are listed in its place."""
    logprobs = choice["logprobs"]
    if not isinstance(logprobs, dict) or not logprobs.get("content"):
        raise InputError(f"{name} sends no log-probabilities; {INSTEAD}")
    try:
        first = logprobs["content"][0]
        entries = [*(first.get("top_logprobs") or []), first]
        listed = {str(entry["token"]): math.exp(min(0.0, float(entry["logprob"]))) for entry in entries}
        if any(math.isnan(float(entry["logprob"])) for entry in entries):
            raise ValueError
        return str(first["token"]), listed
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise Refused("the log-probabilities of the answer cannot be read") from None


def _plain(token: str) -> str:
    return token.strip(SPACES).casefold()
