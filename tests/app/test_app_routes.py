"""The routes behind the Compare screen, over a real store and desk, without a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import app_server
import pytest
from app_server import Person
from PIL import Image
from starlette.testclient import TestClient

from visfeedback.app.choosing import Asking
from visfeedback.app.context import Context

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the test client
Join = Callable[[], Person]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/p.db"


@pytest.fixture
def context(url: str, tmp_path: Path) -> Iterator[Context]:
    app_server.fill(url, tmp_path / "images", prompts=3, each=3)
    with app_server.context(url) as made:
        yield made


@pytest.fixture
def join(context: Context) -> Join:
    """A new browser each time."""
    app = app_server.local_app(context)
    return lambda: Person(TestClient(app, base_url="http://127.0.0.1")).enter()


def test_a_vote_is_kept_with_judge_and_side(join: Join, context: Context) -> None:
    """What stood left wins: the choice follows from the sides that were drawn, never from the client."""
    person = join()
    question = person.next()
    person.post("shown", token=question["token"])
    answer = person.vote(question["token"], choice="left").json()
    [record] = context.store.feedback()
    assert answer["again"] is False
    assert answer["question"]["token"] != question["token"]
    assert record.judge.startswith("human:guest-")
    assert record.choice == ("a" if record.sides[0] == 0 else "b")
    assert record.seconds is not None


def test_the_same_answer_again_is_one_vote(join: Join, context: Context) -> None:
    person = join()
    token = person.next()["token"]
    answers = [person.vote(token, choice="tie").json()["again"] for _ in range(3)]
    assert answers == [False, True, True]
    assert context.store.feedback_count() == 1


def test_another_answer_to_the_same_question_is_refused(join: Join, context: Context) -> None:
    person = join()
    token = person.next()["token"]
    person.vote(token, choice="tie")
    assert person.vote(token, choice="left").status_code == 409
    assert context.store.feedback_count() == 1


def test_questions_fetched_ahead_differ_and_come_again_after_a_reload(join: Join) -> None:
    person = join()
    tokens: list[str] = []
    while len(tokens) < 4:
        tokens.append(person.next(*tokens)["token"])
    again: list[str] = []
    while len(again) < 4:
        again.append(person.next(*again)["token"])
    assert len(set(tokens)) == 4
    assert again == tokens


def test_undo_brings_the_question_back_under_a_new_token(join: Join, context: Context) -> None:
    person = join()
    question = person.next()
    person.vote(question["token"], choice="left")
    back = person.post("undo").json()["question"]
    assert back["prompt"] == question["prompt"]
    assert back["token"] != question["token"]
    assert list(context.store.feedback()) == []
    person.vote(back["token"], choice="both_bad")
    assert [record.choice for record in context.store.feedback()] == ["both_bad"]
    assert context.store.feedback_count() == 3  # the vote, its tombstone, the new vote


def test_undo_of_nothing_says_so(join: Join) -> None:
    assert join().post("undo").json() == {"question": None}


def test_two_people_share_the_questions(join: Join, context: Context) -> None:
    """9 pairs, one judge each: 9 votes in all, no pair twice."""
    people = [join(), join()]
    open_ones = True
    while open_ones:
        found = [(person, person.next()) for person in people]
        open_ones = any(question for _, question in found)
        for person, question in found:
            if question:
                person.vote(question["token"], choice="right")
    records = list(context.store.feedback())
    assert len(records) == len({frozenset(record.sample_ids) for record in records}) == 9


def test_the_end_is_said(join: Join) -> None:
    person = join()
    while question := person.next():
        answer = person.vote(question["token"], choice="skip")
        assert answer.status_code == 200
    assert person.post("next").json() == {"question": None, "waiting": {"drawing": False, "others": 0}}


def test_questions_that_others_hold_are_no_end(join: Join) -> None:
    """Of 9 pairs one has answered 1 and holds 2; the other does 6, hears of 2, and gets the one that is skipped."""
    ada, bob = join(), join()
    first = ada.next()
    ada.vote(first["token"], choice="left")
    held = ada.next()
    assert ada.next(held["token"])
    while question := bob.next():
        answer = bob.vote(question["token"], choice="left").json()
    assert answer == {"again": False, "question": None, "waiting": {"drawing": False, "others": 2}}
    ada.vote(held["token"], choice="skip")
    again = bob.next()
    assert sorted(again["images"]) != sorted(held["images"])  # the same pair under a token of bob's own
    bob.vote(again["token"], choice="left")
    assert bob.post("next").json()["waiting"] == {"drawing": False, "others": 1}


def test_what_somebody_has_answered_does_not_come_back_from_others(url: str, tmp_path: Path) -> None:
    """Three pairs for two judges each: the first is done with them while the second still holds one."""
    app_server.fill(url, tmp_path / "images", Asking(repeats=0, overlap=2), prompts=1, each=3)
    with app_server.context(url) as made:
        app = app_server.local_app(made)
        ada, bob = (Person(TestClient(app, base_url="http://127.0.0.1")).enter() for _ in range(2))
        assert bob.next()
        while question := ada.next():
            ada.vote(question["token"], choice="left")
        assert ada.post("next").json()["waiting"]["others"] == 0


def test_the_browser_learns_nothing_about_who_drew(join: Join, context: Context) -> None:
    """Neither names nor ids nor the order of the pair: only words, tokens and positions."""
    person = join()
    question = person.next()
    text = json.dumps(question)
    image = person.client.get("/" + question["images"][0])
    task = context.desk.find(question["token"], _judge(context, person)).task
    for hidden in ("must-not-leak", *task.sample_ids, task.id, task.prompt_id, "gold", "repeat"):
        assert hidden not in text
        assert hidden not in str(image.headers)
    assert set(question) == {"token", "kind", "prompt", "criteria", "scale", "images", "seconds_left"}


def _judge(context: Context, person: Person) -> str:
    session = context.people.session(person.client.cookies)
    assert session is not None
    return f"human:{session.name}"


def test_images_are_pixels_alone(join: Join, context: Context, tmp_path: Path) -> None:
    """The served file has the pixels of the stored one, none of its text, and does not change: it may be kept."""
    person = join()
    question = person.next()
    shown = context.desk.find(question["token"], _judge(context, person))
    for position, path in enumerate(question["images"]):
        answer = person.client.get(f"/{path}")
        served = Image.open(BytesIO(answer.content))
        original = Image.open(context.store.image_path(shown.shown[position]))
        assert answer.headers["content-type"] == "image/png"
        assert "immutable" in answer.headers["cache-control"]
        assert b"must-not-leak" not in answer.content
        assert served.info == {}
        assert served.tobytes() == original.convert("RGB").tobytes()
        assert original.info["parameters"] == app_server.SECRET  # the kept one has it still


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("best", {"best": 2}, {"best": 7}),
        ("ranking", {"ranks": [0, 1, 1, 3]}, {"ranks": [0, 1]}),
        ("rating", {"ratings": {"overall": [1, 2, 3, 4]}}, {"ratings": {"overall": [1, 2, 3, 9]}}),
        ("like", {"like": True}, {}),
        ("region", {"regions": [{"x": 0.1, "y": 0.2, "width": 0.3, "height": 0.1, "label": "artifact"}]},
         {"regions": [{"x": 3, "y": 0}]}),
        ("words", {"words": [0, 2]}, {"words": [1, 1]}),
        ("text", {"note": "too dark"}, {"note": "  "}),
        ("pair", {"choice": "tie", "note": "both fine"}, {"choice": "first"}),
    ],
)  # fmt: skip
def test_every_kind_of_answer(kind: Any, good: dict[str, Any], bad: dict[str, Any], url: str, tmp_path: Path) -> None:
    app_server.fill(url, tmp_path / "images", Asking(kind=kind, group=4, repeats=0), prompts=1, each=4)
    with app_server.context(url) as context:
        person = Person(TestClient(app_server.local_app(context), base_url="http://127.0.0.1")).enter()
        question = person.next()
        assert question["kind"] == kind
        assert person.vote(question["token"], **bad).status_code == 422
        assert person.vote(question["token"], **good).status_code == 200
        [record] = context.store.feedback()
        assert record.kind == kind


def test_consent_comes_first_and_is_remembered(url: str, tmp_path: Path) -> None:
    app_server.fill(url, tmp_path / "images")
    with app_server.context(url, consent="Votes are published.") as context:
        client = TestClient(app_server.local_app(context), base_url="http://127.0.0.1")
        person = Person(client).enter()
        assert person.client.get("/api/state").json()["consent"] == "Votes are published."
        assert person.post("next").status_code == 409
        assert person.post("agree", agree=True).status_code == 200
        assert person.next()
        again = Person(TestClient(app_server.local_app(context), base_url="http://127.0.0.1", cookies=client.cookies))
        assert again.client.get("/api/state").json()["consent"] == ""  # read from the file by a new server
        assert again.next()


def test_a_consent_to_other_words_does_not_count(url: str, tmp_path: Path) -> None:
    app_server.fill(url, tmp_path / "images")
    with app_server.context(url, consent="A") as context:
        client = TestClient(app_server.local_app(context), base_url="http://127.0.0.1")
        Person(client).enter().post("agree", agree=True)
    with app_server.context(url, consent="B") as context:
        changed = TestClient(app_server.local_app(context), base_url="http://127.0.0.1", cookies=client.cookies)
        assert Person(changed).post("next").status_code == 409


def test_progress_counts_mine_and_all(join: Join) -> None:
    ada, bob = join(), join()
    ada.vote(ada.next()["token"], choice="left")
    bob.vote(bob.next()["token"], choice="left")
    assert ada.client.get("/api/progress").json() == {"wanted": 9, "answered": 2, "mine": 1}
