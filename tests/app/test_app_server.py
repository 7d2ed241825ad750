"""The real server as a process: load, kill -9, Ctrl-C, and what the command says to wrong input."""

from __future__ import annotations

import importlib.util
import io
import json
import threading
from pathlib import Path
from typing import Any

import app_server
import pytest
from app_server import Server

from visfeedback import store
from visfeedback.app.passwords import Users
from visfeedback.cli import main

BENCH = Path(__file__).parents[2] / "scripts" / "bench_app.py"
WHOLE = {"lost": 0, "doubled": 0, "misattributed": 0}


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("bench_app", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_no_vote_is_lost_doubled_or_misattributed(bench: Any, any_store: str, tmp_path: Path) -> None:
    """6 people, 4 seconds, no time to think."""
    found = bench.load(tmp_path, any_store, 6, 0.02, 4.0)
    assert found["failures"] == []
    assert found["votes"] > 20
    assert {name: found[name] for name in WHOLE} == WHOLE
    assert found["not_acknowledged"] == 0
    assert found["exit_code"] == 130


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)  # where images of a PostgreSQL store go
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/p.db"
        return
    import postgres_server

    with postgres_server.running() as socket:
        yield postgres_server.make_database(socket, "app")


@pytest.mark.slow
def test_kill_9_loses_no_acknowledged_vote(bench: Any, tmp_path: Path) -> None:
    found = bench.killed(tmp_path, f"sqlite:///{tmp_path}/p.db", 6, 3.0)
    assert found["acknowledged"] > 10
    assert {name: found[name] for name in WHOLE} == WHOLE


@pytest.mark.slow
def test_a_folder_becomes_questions_and_ctrl_c_ends_well(tmp_path: Path) -> None:
    """Images in two sub-folders count as two makers; the session outlives the server."""
    for maker in ("one", "two"):
        app_server.samples(tmp_path / "images" / maker, prompts=1, each=2)
        for file in (tmp_path / "images" / maker).glob("*.png"):
            file.with_suffix(".txt").write_text("a red circle")
    flags = ("--store", f"sqlite:///{tmp_path}/p.db", "--images", "images", "--no-tabs", "--ask.repeats", "0")
    with Server(*flags, cwd=tmp_path) as server:
        person = server.person().enter()
        question = person.next()
        person.vote(question["token"], choice="left")
        assert question["prompt"] == "a red circle"
        cookies = dict(person.client.cookies)
        person.client.close()
        assert server.stop() == 130
    with Server(*flags, cwd=tmp_path) as server:
        again = server.person()
        again.client.cookies.update(cookies)
        assert again.client.get("/api/progress").json() == {"wanted": 1, "answered": 1, "mine": 1}
        again.client.close()
    with store.open(f"sqlite:///{tmp_path}/p.db") as opened:
        assert sorted({name for _, name in opened.sources()}) == ["one", "two"]


def said(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = main(["collect", *args, "--json"])
    return code, json.loads(capsys.readouterr().out).get("error", "")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "--store sqlite:///prefs.db"),
        (["--store", "prefs.db"], "is not a store URL"),
        (["--store", "{url}", "--images", "nowhere"], "no nowhere"),
        (["--store", "{url}", "--adapter", "a"], "--adapter needs the --model"),
        (["--store", "{url}", "--users", "nobody.txt"], "--add-user NAME --users nobody.txt"),
        (["--store", "{url}", "--instructions", "missing.md"], "--instructions: no file missing.md"),
        (["--store", "{url}", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1"),
        (["--store", "{url}", "--port", "99999"], "port"),
        (["--store", "{url}", "--gold", "nothing.csv"], "no file nothing.csv"),
        (["--store", "{url}", "--ask.kind", "guess"], "kind"),
        (["--store", "{url}", "--imagess", "x"], "did you mean"),
        (["--add-user", "ada"], "--users FILE --add-user ada"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = said(capsys, *(flag.format(url=f"sqlite:///{tmp_path}/p.db") for flag in flags))
    assert code == 2
    assert line in text
    assert "\n" not in text


def test_a_taken_port_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from visfeedback.app.server import listen

    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        code, text = said(capsys, "--store", f"sqlite:///{tmp_path}/p.db", "--port", str(port))
    assert code == 2
    assert f"port {port}" in text


def test_users_are_added_and_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second time gives a new password and role; a short password and a bad name change nothing."""
    path = tmp_path / "users"

    def add(name: str, password: str, *more: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))
        return said(capsys, "--users", str(path), "--add-user", name, *more)

    assert add("ada", "first-password")[0] == 0
    assert add("ada", "second-password", "--role", "operator")[0] == 0
    assert add("bob", "short") == (2, "the password has 5 characters; give 8 or more")
    assert add("a:b", "long-enough")[0] == 2
    users = Users(path)
    assert users.check("ada", "first-password") is None
    found = users.check("ada", "second-password")
    assert found is not None
    assert found.role == "operator"
    assert list(users.all()) == ["ada"]


def test_threads_share_one_picture(tmp_path: Path) -> None:
    """Ten at once ask for one image: it is made once, and all get the same bytes."""
    from visfeedback.app import pictures

    [sample] = app_server.samples(tmp_path, prompts=1, each=1)
    made: list[int] = []
    original = pictures.clean

    def counted(*args: Any) -> bytes:
        made.append(1)
        return original(*args)

    kept = pictures.Pictures(2048)
    pictures.clean, results = counted, []
    try:
        threads = [threading.Thread(target=lambda: results.append(kept.get(tmp_path / sample.path))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        pictures.clean = original
    assert len(made) == 1
    assert len(results) == 10
    assert len(set(results)) == 1
