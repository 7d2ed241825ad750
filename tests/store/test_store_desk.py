"""The desk: who is shown what, how often, and that an answer counts once. On SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from visfeedback import store
from visfeedback.plugins import InputError
from visfeedback.preferences.quality import People
from visfeedback.store.desk import Desk, Refused, Rules
from visfeedback.store.tasks import Answer, Task
from visfeedback.types.records import Region

PLAIN = Rules(gold_every=0, repeat_every=0, lease_seconds=60)
LEFT = Answer(choice="left")


class Clock:
    """Time that only tests move."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(any_url: str, tmp_path: Path) -> Iterator[store.Store]:
    with store.open(any_url, images=tmp_path / "images") as opened:
        yield opened


@pytest.fixture
def make_desk(opened: store.Store, clock: Clock) -> Callable[..., Desk]:
    """``make_desk(tasks=3, overlap=2)``: pairs a-i, b-i."""

    def make(tasks: int = 3, overlap: int = 1, rules: Rules = PLAIN, **more: object) -> Desk:
        desk = Desk(opened, rules=rules, clock=clock)
        desk.add(pair(i, overlap=overlap, **more) for i in range(tasks))
        return desk

    return make


def pair(i: int, **more: object) -> Task:
    return Task.model_validate({"prompt_id": f"p{i}", "sample_ids": (f"a{i}", f"b{i}"), **more})


def test_adding_tasks_again_adds_nothing(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(tasks=3)
    assert desk.add(pair(i) for i in range(4)) == 1
    assert desk.progress("x") == {"tasks": 4, "wanted": 4, "answered": 0, "leased": 0, "mine": 0}


def test_a_vote_says_what_was_on_the_screen(make_desk: Callable[..., Desk], clock: Clock) -> None:
    """Left is whatever stood left: side, order, time shown and answered are on the record."""
    desk = make_desk(tasks=20)
    winners = set()
    for number in range(20):
        shown = desk.next("human:ada")
        assert shown is not None
        desk.shown(shown.token, "human:ada")
        clock.now += 2.5
        desk.shown(shown.token, "human:ada")
        desk.answer(shown.token, "human:ada", LEFT)
        record = list(desk.store.feedback())[-1]
        assert record.sample_ids[0 if record.choice == "a" else 1] == shown.shown[0]
        assert (record.sides, record.order, record.seconds) == (shown.sides, number, 2.5)
        assert record.shown_at and (record.created_at - record.shown_at).total_seconds() == 2.5
        winners.add(record.choice)
    assert winners == {"a", "b"}, "sides are drawn anew: 20 times the same has odds of 1 in 500,000"
    assert desk.next("human:ada") is None


def test_an_answer_counts_once(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(tasks=1)
    shown = desk.next("human:ada")
    assert shown is not None
    receipts = [desk.answer(shown.token, "human:ada", LEFT) for _ in range(5)]
    assert [receipt.again for receipt in receipts] == [False, True, True, True, True]
    with pytest.raises(Refused, match="another answer"):
        desk.answer(shown.token, "human:ada", Answer(choice="right"))
    assert len(list(desk.store.feedback())) == 1


def test_tokens_of_others_and_forged_ones_are_refused(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(tasks=1)
    shown = desk.next("human:ada")
    assert shown is not None
    for token, judge in (
        (shown.token, "human:eve"),
        ("forged", "human:ada"),
        ("", "human:ada"),
        ("'; --", "human:ada"),
    ):
        for act in (desk.shown, desk.find, lambda t, j: desk.answer(t, j, LEFT), lambda t, j: desk.undo(j, t)):
            with pytest.raises(Refused, match="no such question"):
                act(token, judge)
    assert list(desk.store.feedback()) == []


def test_overlap_is_reached_and_not_exceeded(make_desk: Callable[..., Desk]) -> None:
    """Two judges for each of three pairs: five people get six places between them, nobody a pair twice."""
    desk = make_desk(tasks=3, overlap=2)
    handed: list[str] = []
    for person in range(5):
        while (shown := desk.next(f"human:{person}")) is not None:
            desk.answer(shown.token, f"human:{person}", LEFT)
            handed.append(f"{person} {shown.task.id}")
    assert len(handed) == len(set(handed)) == 6
    assert set(Counter(name.split()[1] for name in handed).values()) == {2}


def test_a_lease_holds_a_place_until_it_runs_out(make_desk: Callable[..., Desk], clock: Clock) -> None:
    desk = make_desk(tasks=1)
    ada = desk.next("human:ada")
    assert ada is not None and desk.next("human:bob") is None
    clock.now += 61
    bob = desk.next("human:bob")
    assert bob is not None and bob.token != ada.token
    with pytest.raises(Refused, match="ran out"):
        desk.answer(ada.token, "human:ada", LEFT)
    desk.answer(bob.token, "human:bob", LEFT)
    assert len(list(desk.store.feedback())) == 1


def test_a_late_answer_counts_while_there_is_a_place(make_desk: Callable[..., Desk], clock: Clock) -> None:
    """Somebody comes back from lunch, and nobody else has answered meanwhile."""
    desk = make_desk(tasks=2)
    ada = desk.next("human:ada")
    assert ada is not None
    clock.now += 3600
    other = desk.next("human:bob")
    assert other is not None
    receipt = desk.answer(ada.token, "human:ada", LEFT) if other.task.id != ada.task.id else None
    if receipt is None:
        with pytest.raises(Refused):
            desk.answer(ada.token, "human:ada", LEFT)
    clock.now += 3600
    again = desk.next("human:ada")
    assert again is not None


def test_reload_and_second_tab_go_on_with_the_same(make_desk: Callable[..., Desk]) -> None:
    """Without `besides` the open question comes again; with it the next, as when pairs are fetched ahead."""
    desk = make_desk(tasks=3)
    first = desk.next("human:ada")
    assert first is not None
    assert desk.next("human:ada") == first
    ahead = desk.next("human:ada", besides=[first.token])
    assert ahead is not None and ahead.task.id != first.task.id
    assert desk.next("human:ada", besides=[first.token]) == ahead


def test_undo_is_a_tombstone_and_shows_the_pair_again(make_desk: Callable[..., Desk], clock: Clock) -> None:
    """The old token is dead, the new one works, overlap stays one, everything is on the record."""
    desk = make_desk(tasks=1)
    first = desk.next("human:ada")
    assert first is not None and desk.undo("human:ada") is None
    desk.answer(first.token, "human:ada", LEFT)
    clock.now += 1
    again = desk.undo("human:ada")
    assert again is not None and again.task == first.task and again.token != first.token
    assert list(desk.store.feedback()) == []
    with pytest.raises(Refused):
        desk.answer(first.token, "human:ada", LEFT)
    desk.answer(again.token, "human:ada", Answer(choice="right"))
    assert len(list(desk.store.feedback())) == 1
    assert [r.kind for r in desk.store.feedback(include_retracted=True)] == ["pair", "tombstone", "pair"]
    assert desk.next("human:bob") is None


def test_a_skip_leaves_the_place_to_others(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(tasks=1)
    ada = desk.next("human:ada")
    assert ada is not None
    desk.answer(ada.token, "human:ada", Answer(choice="skip"))
    assert desk.next("human:ada") is None
    bob = desk.next("human:bob")
    assert bob is not None
    desk.answer(bob.token, "human:bob", LEFT)
    with pytest.raises(Refused, match="others have answered"):
        desk.undo("human:ada")


def test_gold_and_repeats_are_mixed_in(make_desk: Callable[..., Desk]) -> None:
    """Of 30 presentations every 5th is gold (while there are new ones) and every 6th a repeat; both are measured."""
    rules = Rules(gold_every=5, repeat_every=6, repeat_gap=3)
    desk = make_desk(tasks=30, rules=rules, repeat=True)
    desk.add(pair(i + 100, gold=True, expected="a", overlap=1000) for i in range(3))
    turns = []
    for _ in range(30):
        shown = desk.next("human:ada")
        assert shown is not None
        desk.answer(shown.token, "human:ada", Answer(choice="tie"))
        turns.append("gold" if shown.task.gold else "repeat" if shown.turn else "new")
    assert Counter(turns) == {"new": 22, "gold": 3, "repeat": 5}
    people = People()
    for record in desk.store.feedback():
        people.add(record)
    ada = people.summary()["judges"]["human:ada"]
    assert (ada["gold"]["n"], ada["gold"]["share"]) == (3, 0)
    assert (ada["repeats"]["n"], ada["repeats"]["share"]) == (5, 1)


def test_what_matters_most_is_asked_first(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(tasks=3)
    last = pair(2, project="default").named().id
    desk.prioritise({last: 5.0})
    shown = desk.next("human:ada")
    assert shown is not None and shown.task.id == last


KINDS = [
    ({"kind": "pair"}, 2, Answer(choice="both_bad"), Answer()),
    ({"kind": "best"}, 4, Answer(best=3), Answer(best=4)),
    ({"kind": "ranking"}, 3, Answer(ranks=(0, 1, 1)), Answer(ranks=(0, 1))),
    ({"kind": "rating", "criteria": ("style", "text")}, 2, Answer(ratings={"style": (1, 5), "text": (2, 2)}),
     Answer(ratings={"style": (1, 9), "text": (2, 2)})),
    ({"kind": "like"}, 1, Answer(like=False), Answer()),
    ({"kind": "region"}, 1, Answer(regions=(Region(x=0.5, y=0.5),)), None),
    ({"kind": "words"}, 1, Answer(words=(0, 3)), Answer(words=(0, 0))),
    ({"kind": "text"}, 1, Answer(note="a third arm"), Answer(note=" ")),
]  # fmt: skip


@pytest.mark.parametrize(("task", "images", "good", "bad"), KINDS)
def test_every_kind(
    opened: store.Store, task: dict[str, object], images: int, good: Answer, bad: Answer | None
) -> None:
    """A good answer is kept in the order of the task's images; a wrong one is refused with one line; skip fits all."""
    desk = Desk(opened, rules=PLAIN)
    desk.add(Task.model_validate({"prompt_id": f"p{i}", "sample_ids": [f"{k}-{i}" for k in range(images)], **task})
             for i in range(2))  # fmt: skip
    shown = desk.next("human:ada")
    assert shown is not None
    if bad is not None:
        with pytest.raises(InputError) as caught:
            desk.answer(shown.token, "human:ada", bad)
        assert "\n" not in str(caught.value)
    desk.answer(shown.token, "human:ada", good)
    assert desk.answer(shown.token, "human:ada", good).again
    records = list(opened.feedback())
    assert {r.kind for r in records} == {task["kind"]} and len(records) == len(shown.task.criteria)
    if good.best is not None:
        assert records[0].values[records[0].sides.index(3)] == 1 and sum(records[0].values) == 1
    if good.ranks:
        assert [records[0].values[records[0].sides.index(side)] for side in range(3)] == [0, 1, 1]
    other = desk.next("human:ada")
    assert other is not None
    desk.answer(other.token, "human:ada", Answer(choice="skip"))
    desk.undo("human:ada", shown.token)
    assert [r.choice for r in opened.feedback()] == ["skip"]


@pytest.mark.parametrize(
    "wrong",
    [{"choice": "c"}, {"choice": "left", "judge": "x"}, {"note": "x" * 5000}, {"words": [0] * 1000}, {"best": -1},
     {"regions": [{"x": 2, "y": 0}]}, {"ranks": ["a"]}],
)  # fmt: skip
def test_what_a_client_may_not_send(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Answer.model_validate(wrong)


VOTER = """
import json, sys
from pathlib import Path
from visfeedback import store
from visfeedback.store.desk import Desk, Rules
from visfeedback.store.tasks import Answer
url, images, judge, tries = sys.argv[1:5]
done = []
with store.open(url, images=Path(images)) as opened:
    desk = Desk(opened, rules=Rules(gold_every=0, repeat_every=0))
    while (shown := desk.next(judge)) is not None:
        for _ in range(int(tries)):
            try:
                desk.answer(shown.token, judge, Answer(choice="left"))
            except ValueError:
                pass
        done.append(shown.task.id)
print(json.dumps(done))
"""


def test_processes_at_one_desk_lose_and_double_nothing(any_url: str, opened: store.Store, tmp_path: Path) -> None:
    """Three people, one of them in two tabs (two processes of one name), 12 pairs wanted by 2 each; every vote is sent
    three times. 24 votes are in the store, no pair has more than 2, and no person judged one twice."""
    Desk(opened, rules=PLAIN).add(pair(i, overlap=2) for i in range(12))
    args = [sys.executable, "-c", VOTER, any_url, str(tmp_path / "images")]
    people = ["human:a", "human:b", "human:c", "human:c"]
    running = [subprocess.Popen([*args, person, "3"], stdout=subprocess.PIPE, text=True) for person in people]
    said = [json.loads(process.communicate()[0] or "[]") for process in running]
    assert [process.returncode for process in running] == [0] * 4
    records = list(opened.feedback())
    assert len(records) == 24
    assert set(Counter(record.prompt_id for record in records).values()) == {2}
    assert len({(record.judge, record.prompt_id) for record in records}) == 24
    assert sum(map(len, said)) >= 24
    assert Desk(opened).progress()["answered"] == 24
