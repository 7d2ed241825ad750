"""What the store tests share: samples with real little images, and an open store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import postgres_server
import pytest
from PIL import Image

from visfeedback import store
from visfeedback.types.records import Feedback, Prompt, Sample, image_id


@pytest.fixture
def make_samples(tmp_path: Path) -> Callable[..., list[Sample]]:
    """``make_samples(prompts=2, each=3)``: 8x8 px PNG files in ``tmp_path/images``, all different."""

    def make(prompts: int = 2, each: int = 2, folder: Path = tmp_path / "images") -> list[Sample]:
        folder.mkdir(exist_ok=True)
        return [one(folder, p, k) for p in range(prompts) for k in range(each)]

    def one(folder: Path, p: int, k: int) -> Sample:
        image = Image.new("RGB", (8, 8), (p * 20, k * 20, 7))
        image.save(folder / f"{p}-{k}.png")
        prompt = Prompt.of(f"prompt {p}", category="colors")
        return Sample(
            id=image_id(8, 8, image.tobytes()), prompt_id=prompt.id, prompt=prompt.text, category="colors",
            path=f"{p}-{k}.png", width=8, height=8, model="m", seed=k, guidance=7.5, call={"eta": 0.5},
        )  # fmt: skip

    return make


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/prefs.db"


@pytest.fixture
def opened(url: str) -> Iterator[store.Store]:
    with store.open(url) as opened:
        yield opened


@pytest.fixture
def filled(opened: store.Store, make_samples: Callable[..., list[Sample]], tmp_path: Path) -> store.Store:
    """Two prompts with two images each, and one vote for the first image of each."""
    samples = make_samples()
    opened.add_samples(samples, tmp_path / "images")
    for i, (a, b) in enumerate([samples[:2], samples[2:]]):
        opened.add_feedback([vote(a, b, f"vote-{i}")])
    return opened


def vote(a: Sample, b: Sample, name: str, **more: object) -> Feedback:
    values = {"choice": "a", "values": (1.0, 0.0), "sides": (0, 1), "seconds": 2.0, "judge": "human:ada"} | more
    return Feedback.model_validate({"id": name, "prompt_id": a.prompt_id, "sample_ids": (a.id, b.id), **values})


@pytest.fixture(name="vote")
def vote_fixture() -> Callable[..., Feedback]:
    """``vote(a, b, "id", choice="b")``."""
    return vote


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[str]:
    """A server that lives as long as the tests, where its programs are installed."""
    if postgres_server.programs() is None:
        pytest.skip(postgres_server.MISSING)
    pytest.importorskip("psycopg", reason="no psycopg; pip install 'visfeedback[postgres]'")
    with postgres_server.running() as socket:
        yield socket


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def any_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store that is not there yet: the same tests run on both databases."""
    monkeypatch.chdir(tmp_path)  # where images of a PostgreSQL store go by default
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/prefs.db"
    return postgres_server.make_database(request.getfixturevalue("postgres_socket"), f"t{uuid.uuid4().hex[:12]}")
