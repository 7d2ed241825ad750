"""One request to a chat endpoint, sent again while that may help.

Worth another attempt: no connection, no answer in time, 408, 409, 425, 429, 5xx, and an answer that is no JSON.
The pause doubles from half a second, or is what ``Retry-After`` says. What no repetition cures is either the set-up's
fault (``InputError``: key, model, address) or this question's (``Refused``: too large, against the rules of the host).
May import: types.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from visfeedback.plugins import InputError

if TYPE_CHECKING:
    import httpx

PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
"""Statuses after which the same request may succeed."""
SETUP = {401: "the key is missing or wrong", 402: "the account has no credit", 403: "the key may not use this model",
         404: "no such model or address"}  # fmt: skip
LONGEST_PAUSE = 60.0  # seconds: a host that asks for more is asked again earlier


class Refused(Exception):
    """This question got no answer, another may: one line."""


class Unanswered(Refused):
    """The host was there and gave no answer, however often it was asked."""


class Unsuitable(Refused):
    """The host does not take the request as it is written (400, 422)."""


def post(
    client: httpx.Client,
    url: str,
    payload: Mapping[str, Any],
    attempts: int,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """The JSON object that was answered. Raises InputError or a kind of Refused as the module says."""
    import httpx

    problem, connected = "", False
    for attempt in range(attempts):
        wait: float | None = None
        try:
            response = client.post(url, json=payload)
        except httpx.ConnectError as error:
            problem = f"no connection to {url}: {error}"
        except httpx.TimeoutException:
            problem, connected = "no answer in time", True
        except httpx.TransportError as error:
            problem, connected = f"the connection broke: {error or type(error).__name__}", True
        else:
            connected = True
            answer = _read(response)
            if isinstance(answer, dict):
                return answer
            problem, wait = answer, _retry_after(response)
        if attempt + 1 < attempts:
            sleep(_pause(attempt) if wait is None else min(wait, LONGEST_PAUSE))
    if not connected:
        raise InputError(f"{problem}; start the server or correct MODEL@BASE_URL")
    raise Unanswered(f"{problem} ({attempts} attempts)")


def _read(response: httpx.Response) -> dict[str, Any] | str:
    """The answer, or one line on what may pass with time. Raises for everything else."""
    status = response.status_code
    if status == 200:
        try:
            content = response.json()
        except ValueError:
            return "the answer is no JSON"
        return content if isinstance(content, dict) else "the answer is no JSON object"
    said = _message(response)
    if status in SETUP or "insufficient_quota" in response.text:
        raise InputError(f"{response.url} refuses ({status}): {SETUP.get(status, 'the quota is used up')}; {said}")
    if status in PASSING or status >= 500:
        return f"the host answers {status}: {said}"
    raise (Unsuitable if status in (400, 422) else Refused)(f"the host answers {status}: {said}")


def _message(response: httpx.Response) -> str:
    """What the host says about an error, one line of at most 300 characters."""
    try:
        content = response.json()
    except ValueError:
        content = response.text
    if isinstance(content, dict):
        error = content.get("error", content.get("message", content.get("detail", "")))
        content = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(content).split())[:300] or response.reason_phrase


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds from the header, which holds seconds or a date."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _pause(attempt: int) -> float:
    """0.5, 1, 2, 4, ... seconds, a little random so that many clients do not come back at once."""
    return min(0.5 * 2**attempt, LONGEST_PAUSE) * random.uniform(0.75, 1.25)
