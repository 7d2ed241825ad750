"""A chat endpoint on this machine and a tiny random Qwen2-VL in a folder."""

from __future__ import annotations

import pytest
from chat_server import chat_server
from tiny_vlm import write_tiny_vlm


@pytest.fixture
def server(monkeypatch):
    for name in ("VISFEEDBACK_API_KEY", "OPENAI_API_KEY", "VISFEEDBACK_VLM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with chat_server() as running:
        yield running


@pytest.fixture(scope="session")
def tiny_vlm_folder(tmp_path_factory):
    return write_tiny_vlm(tmp_path_factory.mktemp("vlm"))
