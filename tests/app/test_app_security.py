"""What the app must not do, tried by raw HTTP: every danger has a test that does the wrong thing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import app_server
import pytest
from app_server import Person
from starlette.testclient import TestClient

from visfeedback.app.context import Context
from visfeedback.app.passwords import Users
from visfeedback.app.server import application, is_local
from visfeedback.cli.collect import CollectFlags

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the test client
Join = Callable[..., Person]
BASE = "http://127.0.0.1"


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/p.db"
    app_server.fill(url, tmp_path / "images", prompts=2, each=3)
    return url


@pytest.fixture
def open_context(url: str) -> Iterator[Context]:
    """Nobody needs to log in."""
    with app_server.context(url, tabs=True) as made:
        yield made


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return app_server.people(tmp_path / "users", ada="annotator", bob="annotator", olga="operator")


@pytest.fixture
def closed_context(url: str, users: Path) -> Iterator[Context]:
    """With a users file."""
    with app_server.context(url, users, judge_rate=5.0, tabs=True) as made:
        yield made


@pytest.fixture
def bare_context(url: str) -> Iterator[Context]:
    """Nobody needs to log in, and Gradio is not there: quicker."""
    with app_server.context(url) as made:
        yield made


def visitor(context: Context, **more: Any) -> Person:
    return Person(TestClient(app_server.local_app(context), base_url=BASE, **more))


def refusals(context: Context) -> list[dict[str, Any]]:
    path = context.folder / "refusals.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# files


@pytest.mark.parametrize(
    "path",
    [
        "/image/{token}/../../p.db", "/image/{token}/2", "/image/{token}/-1", "/image/x/0",
        "/image/{token}/0/../../p.db",
        "/screen/../routes.py", "/screen/%2e%2e/routes.py", "/screen//etc/passwd", "/gradio_api/file=/etc/passwd",
        "/gradio_api/file={folder}/p.db", "/gradio_api/file={folder}/p.images/../p.db", "/file={folder}/p.db",
        "/gradio_api/file=file:///etc/passwd", "/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/file={image}",
    ],
)  # fmt: skip
def test_no_path_outside_the_sample_set_is_served(path: str, open_context: Context, tmp_path: Path) -> None:
    """Not even the original image behind a question: it has a name and text inside."""
    person = visitor(open_context).enter()
    question = person.next()
    [original] = {sample.path for sample in open_context.store.samples()} & {
        str(open_context.store.image_path(sample.id).absolute()) for sample in list(open_context.store.samples())[:1]
    }
    asked = path.format(token=question["token"], folder=tmp_path, image=original)
    answer = person.client.get(asked)
    assert answer.status_code in (400, 403, 404, 405, 409, 422), (answer.status_code, answer.text[:200])


def test_of_what_the_app_wrote_only_archives_are_served(open_context: Context) -> None:
    """Logs and settings of runs stand beside the exports; they are shown in pieces, never sent as files."""
    person = visitor(open_context).enter()
    for name, status in (("exports/all.zip", 200), ("runs/dpo-1/job.json", 403), ("refusals.jsonl", 403)):
        file = open_context.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
        assert person.client.get(f"/gradio_api/file={file}").status_code == status, name


def test_others_images_are_not_served(bare_context: Context) -> None:
    ada, eve = visitor(bare_context).enter(), visitor(bare_context).enter()
    path = ada.next()["images"][0]
    assert ada.client.get(f"/{path}").status_code == 200
    assert eve.client.get(f"/{path}").status_code == 409


def test_uploads_are_for_operators_and_limited(url: str, users: Path) -> None:
    """1 MiB is taken, 2 MiB are not; an annotator's are not; with a limit of 0 nobody's are."""
    with app_server.context(url, users, tabs=True, upload_mib=1) as context:
        ada, olga = visitor(context), visitor(context)
        ada.log_in("ada")
        olga.log_in("olga")
        assert send(ada, 2**10) == 403
        assert send(olga, 2**10) == 200
        assert send(olga, 2**21) == 413
    with app_server.context(url, tabs=True, upload_mib=0) as context:
        assert send(visitor(context).enter(), 2**10) == 413


def send(person: Person, size: int) -> int:
    return person.client.post("/gradio_api/upload", files={"files": ("a.jsonl", b"x" * size)}).status_code


# votes


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"token": "forged", "answer": {"choice": "left"}}, 409),
        ({"token": "x" * 5000, "answer": {"choice": "left"}}, 422),
        ({"token": "", "answer": {"choice": "left"}}, 422),
        ({"token": ["a"], "answer": {"choice": "left"}}, 422),
        ({"token": "mine", "answer": {"choice": "best"}}, 422),
        ({"token": "mine", "answer": {}}, 422),
        ({"token": "mine", "answer": {"choice": "left", "judge": "human:olga"}}, 422),
        ({"token": "mine", "answer": {"choice": "left", "note": "x" * 5000}}, 422),
        ({"token": "mine", "answer": {"choice": "left"}, "judge": "human:olga"}, 422),
        ({"token": "mine", "answer": {"choice": "left"}, "have": ["x"] * 100}, 422),
        ({"token": "mine", "answer": {"best": 10**400}}, 422),
        ({"token": "mine", "answer": {"regions": [{"x": 0, "y": 0}] * 300}}, 422),
        ([], 422),
        ({}, 422),
    ],
)
def test_malformed_votes_are_refused_and_written_down(body: Any, status: int, bare_context: Context) -> None:
    person = visitor(bare_context).enter()
    token = person.next()["token"]
    if isinstance(body, dict) and body.get("token") == "mine":
        body = body | {"token": token}
    answer = person.client.post("/api/vote", json=body)
    assert answer.status_code == status, answer.text
    assert bare_context.store.feedback_count() == 0
    assert refusals(bare_context)[-1]["judge"].startswith("human:guest-")
    assert "x" * 400 not in answer.text  # what came is not sent back


def test_a_huge_body_is_refused_before_it_is_read(bare_context: Context) -> None:
    person = visitor(bare_context).enter()
    answer = person.client.post("/api/vote", content=b"x" * 70_000, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_body_of_unknown_length_is_refused(bare_context: Context) -> None:
    person = visitor(bare_context).enter()
    answer = person.client.post("/api/vote", content=iter([b"{", b"}"]))
    assert answer.status_code == 411


def test_others_tokens_are_refused_and_written_down(bare_context: Context) -> None:
    ada, eve = visitor(bare_context).enter(), visitor(bare_context).enter()
    token = ada.next()["token"]
    for path, body in [("vote", {"answer": {"choice": "left"}}), ("shown", {}), ("undo", {})]:
        assert eve.post(path, token=token, **body).status_code == 409
    written = refusals(bare_context)[-3:]
    assert {row["what"] for row in written} == {"refused"}
    assert bare_context.store.feedback_count() == 0


def test_no_address_is_written(bare_context: Context) -> None:
    visitor(bare_context).enter().vote("forged", choice="left")
    [row] = refusals(bare_context)
    assert row["from"]
    assert "testclient" not in json.dumps(row)


# who


def test_without_a_log_in_nothing_is_to_be_had(closed_context: Context) -> None:
    person = visitor(closed_context)
    for path in ("/api/state", "/config", "/gradio_api/info", "/image/x/0", "/theme.css"):
        assert person.client.get(path).status_code == 401, path
    for path in ("/api/next", "/api/vote", "/gradio_api/queue/join", "/gradio_api/call/x"):
        assert person.client.post(path, json={}).status_code == 401, path
    assert person.client.get("/", follow_redirects=False).headers["location"] == "login"
    assert len(refusals(closed_context)) == 9


def test_log_in_and_out(closed_context: Context) -> None:
    person = visitor(closed_context)
    assert person.log_in("ada").status_code == 303
    assert person.client.get("/api/state").json()["judge"] == "ada"
    person.vote(person.next()["token"], choice="left")
    assert [record.judge for record in closed_context.store.feedback()] == ["human:ada"]
    assert person.client.post("/logout").status_code == 200
    assert person.client.get("/api/state").status_code == 401


def test_annotators_have_the_compare_screen_alone(closed_context: Context) -> None:
    person = visitor(closed_context)
    person.log_in("ada")
    assert person.client.get("/", follow_redirects=False).headers["location"] == "compare"
    assert person.client.get("/compare").status_code == 200
    for path in ("/config", "/gradio_api/info"):
        assert person.client.get(path).status_code == 403
    assert person.client.post("/gradio_api/queue/join", json={}).status_code == 403


def test_operators_have_everything(closed_context: Context) -> None:
    person = visitor(closed_context)
    person.log_in("olga")
    assert person.client.get("/").status_code == 200
    assert person.client.get("/config").status_code == 200


def test_without_tabs_there_is_no_gradio(bare_context: Context) -> None:
    person = visitor(bare_context).enter()
    assert person.client.get("/", follow_redirects=False).headers["location"] == "compare"
    assert person.client.get("/config").status_code == 404


@pytest.mark.parametrize("change", ["cookie", "name", "old"])
def test_forged_sessions_are_nobody(change: str, closed_context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    person = visitor(closed_context)
    person.log_in("ada")
    [(name, text)] = person.client.cookies.items()
    if change == "old":
        monkeypatch.setattr("visfeedback.app.sessions.time.time", lambda: 4e9)
    forged = {"cookie": text[:-1] + ("0" if text[-1] != "0" else "1"), "name": "x" + text, "old": text}[change]
    person.client.cookies.set(name, forged)
    other = visitor(closed_context, cookies={name: forged})
    assert other.client.get("/api/state").status_code == 401


def test_a_new_password_or_role_and_a_removed_user_end_sessions(closed_context: Context, users: Path) -> None:
    people = {name: visitor(closed_context) for name in ("ada", "bob", "olga")}
    for name, person in people.items():
        person.log_in(name)
    app_server.people(users, ada="annotator", bob="operator")
    users.write_text("".join(line for line in users.open() if not line.startswith("olga")))
    assert [person.client.get("/api/state").status_code for person in people.values()] == [401, 401, 401]


def test_passwords_are_hashed_in_the_file(users: Path) -> None:
    text = users.read_text()
    assert "password" not in text
    assert all(line.split(":")[2].startswith("scrypt$16384$8$5$") for line in text.splitlines())
    assert len({line.split("$")[4] for line in text.splitlines()}) == 3  # salts differ
    assert users.stat().st_mode & 0o077 == 0


def test_guessing_passwords_is_slowed_down(closed_context: Context) -> None:
    """Five tries, then a wait, during which the right password does not count either; others may log in."""
    person = visitor(closed_context)
    assert [person.log_in("ada", "wrong-password").status_code for _ in range(6)] == [401] * 5 + [429]
    assert person.log_in("ada").status_code == 429
    assert person.log_in("olga").status_code == 303
    assert {row["what"] for row in refusals(closed_context)} == {"wrong password", "log-in too often"}


def test_the_cookie_is_out_of_reach(closed_context: Context) -> None:
    plain = visitor(closed_context).log_in("ada").headers["set-cookie"].lower()
    secure = Person(TestClient(app_server.local_app(closed_context), base_url="https://127.0.0.1"))
    assert "httponly" in plain
    assert "samesite=lax" in plain
    assert "secure" not in plain  # over http a browser would throw it away
    assert "secure" in secure.log_in("ada").headers["set-cookie"].lower()


# other pages


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site", "origin": BASE},
    ],
)  # fmt: skip
def test_other_pages_cannot_vote_in_somebodys_name(headers: dict[str, str], open_context: Context) -> None:
    person = visitor(open_context).enter()
    token = person.next()["token"]
    body = {"token": token, "answer": {"choice": "left"}}
    assert person.client.post("/api/vote", json=body, headers=headers).status_code == 403
    assert person.client.post("/gradio_api/queue/join", json={}, headers=headers).status_code == 403
    ours = {"origin": BASE, "sec-fetch-site": "same-origin"}
    assert person.client.post("/api/vote", json=body, headers=ours).status_code == 200


def test_other_names_of_this_machine_get_nothing(bare_context: Context) -> None:
    """A page whose name was pointed to 127.0.0.1 (DNS rebinding)."""
    answer = TestClient(app_server.local_app(bare_context), base_url="http://evil.example").get("/compare")
    assert answer.status_code == 421


def test_a_named_host_is_answered(url: str) -> None:
    with app_server.context(url, public_hosts=("collect.example.org",)) as context:
        app = app_server.local_app(context)
        assert TestClient(app, base_url="https://collect.example.org").get("/compare").status_code == 200


# limits and leaks


def test_a_hasty_judge_has_to_wait(url: str, users: Path) -> None:
    """One in two seconds for long, a burst of 6; somebody else at the same address goes on."""
    with app_server.context(url, users, judge_rate=0.5) as context:
        app = app_server.local_app(context)
        ada, bob = (Person(TestClient(app, base_url=BASE)) for _ in range(2))
        ada.log_in("ada")
        bob.log_in("bob")
        check_haste(ada, bob)


def check_haste(ada: Person, bob: Person) -> None:
    answers = [ada.client.post("/api/agree", json={"agree": False}) for _ in range(40)]
    assert answers[5].status_code == 200
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert bob.client.get("/api/progress").status_code == 200


def test_a_hasty_address_has_to_wait(url: str) -> None:
    """So low a rate that even a machine with other work asks faster."""
    with app_server.context(url, address_rate=0.5) as context:
        person = visitor(context)
        answers = [person.client.get("/health").status_code for _ in range(80)]
        assert answers[0] == 200
        assert answers[-1] == 429


def test_a_flood_of_refusals_does_not_fill_the_disk(bare_context: Context) -> None:
    person = visitor(bare_context)
    for _ in range(300):
        person.post("next")
    assert 200 <= len(refusals(bare_context)) < 260


def test_no_secret_is_in_the_page_or_its_config(open_context: Context, tmp_path: Path) -> None:
    person = visitor(open_context).enter()
    for path in ("/", "/config", "/compare", "/api/state", "/gradio_api/info"):
        text = person.client.get(path).text
        for secret in (open_context.store.secret(), open_context.url, str(tmp_path), "scrypt", "must-not-leak"):
            assert secret not in text, (path, secret)


def test_every_answer_carries_the_security_headers(open_context: Context) -> None:
    person = visitor(open_context).enter()
    for path in ("/compare", "/", "/api/state", "/nothing-here"):
        headers = person.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in person.client.get("/compare").headers["content-security-policy"]
    assert person.client.get("/api/state").headers["cache-control"] == "no-store"
    assert person.client.get("/screen/compare.js").headers["cache-control"] == "no-cache"


def test_documentation_of_the_api_is_not_served(open_context: Context) -> None:
    person = visitor(open_context).enter()
    assert {person.client.get(path).status_code for path in ("/docs", "/openapi.json", "/redoc")} <= {404, 200}
    assert "vote" not in person.client.get("/openapi.json").text


def test_only_this_machine_by_default() -> None:
    assert CollectFlags().host == "127.0.0.1"
    assert is_local("127.0.0.1")
    assert not is_local("0.0.0.0")
    assert not is_local("127.0.0.1", ["collect.example.org"])  # a proxy passes others on


def test_strangers_from_elsewhere_are_no_operators(url: str) -> None:
    with app_server.context(url, local=False) as context:
        person = Person(TestClient(application(context, "0.0.0.0", tabs=()), base_url="http://anything.example"))
        assert person.client.get("/", follow_redirects=False).headers["location"] == "compare"
        person.enter()
        assert person.next()
        assert person.client.get("/config").status_code == 403


@pytest.mark.parametrize(
    "line", ["ada", "ada:boss:scrypt$16384$8$5$AAAA$BBBB", "ada:operator:plain", "a:operator:scrypt$3$8$5$AA$BB"]
)
def test_a_damaged_users_file_is_one_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1: expected name:role:scrypt"):
        Users(path)
