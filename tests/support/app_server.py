"""The collection app for tests: inside this process for speed, or as a real server to be loaded and killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, PngImagePlugin

from visfeedback import store
from visfeedback.app import server
from visfeedback.app.choosing import Asking, questions
from visfeedback.app.context import Context
from visfeedback.app.passwords import Users, add
from visfeedback.app.people import People
from visfeedback.app.settings import Collect
from visfeedback.store.desk import Desk, Rules
from visfeedback.types.records import Prompt, Sample, image_id

SECRET = "drawn by model-that-must-not-leak"
PLAIN = Rules(gold_every=0, repeat_every=0)


def samples(folder: Path, prompts: int = 4, each: int = 4, side: int = 16) -> list[Sample]:
    """PNG files with a telling name and text chunk, all pixels different from image to image."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_sample(folder, p, k, side) for p in range(prompts) for k in range(each)]


def _sample(folder: Path, p: int, k: int, side: int) -> Sample:
    image = Image.new("RGB", (side, side), (40 + (p * 37) % 200, 40 + (k * 53) % 200, p % 256))
    image.putpixel((0, 0), (p % 256, k % 256, p // 256))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", SECRET)
    name = f"model-that-must-not-leak-{p}-{k}.png"
    image.save(folder / name, pnginfo=notes)
    prompt = Prompt.of(f"a picture of {p} things & <b>more</b>")
    return Sample(
        id=image_id(side, side, image.tobytes()), prompt_id=prompt.id, prompt=prompt.text, path=name, width=side,
        height=side, model="model-that-must-not-leak", adapter="b" if k % 2 else "", seed=k,
    )  # fmt: skip


def fill(url: str, folder: Path, asking: Asking | None = None, **size: int) -> list[Sample]:
    """A store with images and questions about them; the same again changes nothing."""
    made = samples(folder, **size)
    with store.open(url) as opened:
        opened.add_samples(made, folder)
        Desk(opened, rules=PLAIN).add(questions(made, asking or Asking(repeats=0), "all"))
    return made


@contextmanager
def context(
    url: str, users: Path | None = None, local: bool = True, rules: Rules = PLAIN, **settings: Any
) -> Iterator[Context]:
    """Without Gradio's tabs unless ``tabs=True``: most tests need none, and they take a second."""
    settings = {"tabs": False} | settings
    with store.open(url) as opened:
        people = People(opened.secret(), Users(users) if users else None, local)
        yield Context(
            store=opened, url=url, project="default", desk=Desk(opened, rules=rules), settings=Collect(**settings),
            folder=opened.image_folder.root.with_suffix(".collect"), people=people,
        )  # fmt: skip


def people(path: Path, **roles: Any) -> Path:
    """A users file; every password is the name and `-password`."""
    for name, role in roles.items():
        add(path, name, f"{name}-password", role)
    return path


def local_app(where: Context, tabs: Any = ()) -> Any:
    return server.application(where, tabs=tabs)


class Person:
    """Somebody with a browser's cookies, without the browser."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def enter(self) -> Person:
        assert self.client.get("/compare").status_code == 200
        return self

    def log_in(self, name: str, password: str = "") -> httpx.Response:
        form = {"name": name, "password": password or f"{name}-password"}
        return self.client.post("/login", data=form, follow_redirects=False)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(f"/api/{path}", json=body)

    def next(self, *have: str) -> dict[str, Any]:
        answer = self.post("next", have=list(have))
        assert answer.status_code == 200, answer.text
        return answer.json()["question"]

    def vote(self, token: str, **answer: Any) -> httpx.Response:
        return self.post("vote", token=token, answer=answer)


class Server:
    """`visfeedback collect` as a process of its own."""

    def __init__(self, *flags: str, cwd: Path) -> None:
        command = [sys.executable, "-m", "visfeedback", "collect", "--port", "0", *flags]
        self.process = subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True)
        self.url = self._announced()

    def _announced(self) -> str:
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            if found := re.search(r"http://\S+", line):
                return found[0]
        raise AssertionError(f"the server ended: {said}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.kill()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def person(self) -> Person:
        return Person(httpx.Client(base_url=self.url, timeout=30))


def until(true: Any, seconds: float = 30.0) -> None:
    """Waits until ``true()``; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
