"""Vision-language models that answer questions about images: a chat endpoint, or weights on this machine.

Both offer the protocol ``Vlm`` (``questions.py``): ``ask`` for a text, ``probability`` for the chances of a first word.
One question that fails does not stop the others: its reply says why. To add a kind: one file with such a class, and
a line in ``connect``. Left out: video, tools, streaming. May import: types.
"""

from __future__ import annotations

import os
from pathlib import Path

from visfeedback.vlm.questions import Question, Reply, Vlm

__all__ = ["Question", "Reply", "Vlm", "connect"]

CACHE_VARIABLE = "VISFEEDBACK_VLM_CACHE"
"""A folder: answers of endpoints are kept there, and the same question is not asked (and paid for) twice."""


def connect(reference: str, device: str = "cpu", dtype: str = "fp32") -> Vlm:
    """``MODEL@BASE_URL`` of a chat endpoint, ``local:FOLDER``, or a hub id ``owner/name``.

    Nothing is sent to an endpoint before the first question. Raises InputError for a reference of another form and
    for a folder that holds no vision-language model.
    """
    from visfeedback.vlm import endpoint

    if endpoint.is_endpoint(reference):
        folder = os.environ.get(CACHE_VARIABLE)
        return endpoint.open_endpoint(reference, cache=Path(folder).expanduser() if folder else None)
    from visfeedback.vlm import local  # torch is loaded only for weights on this machine

    return local.load(reference.removeprefix("local:"), device=device, dtype=dtype)
