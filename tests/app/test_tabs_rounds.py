"""Sessions in rounds: kept in the store alone, append-only, gone back to, and drawn along what was liked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import app_server
import pytest
from PIL import Image
from tabs_session import Noise

from visfeedback import store
from visfeedback.app import board_rounds as rounds
from visfeedback.app.board_sessions import Sessions
from visfeedback.app.board_wiring import spoken
from visfeedback.app.context import Context
from visfeedback.app.data_view import overview
from visfeedback.app.train_pairs import count
from visfeedback.plugins import InputError
from visfeedback.preferences.pairs import pairs_from_feedback
from visfeedback.store import transfer
from visfeedback.types.records import Feedback

ADA, BOB = "human:ada", "human:bob"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    with app_server.context(f"sqlite:///{tmp_path}/p.db") as made:
        made.model = "shapes:sd"
        made.rounds = SimpleNamespace(engines={"noise": Noise(made.store)})  # type: ignore[assignment]
        yield made


@pytest.fixture
def sessions(context: Context) -> Sessions:
    return rounds.sessions(context)


def engine(context: Context) -> Noise:
    return context.rounds.engines["noise"]  # type: ignore[union-attr]


def begin(context: Context, judge: str = ADA, **more: Any) -> Any:
    values = {"prompt": "a hat", "images": 3, "seed": 1, "strength": 0.5, "engine": "noise"} | more
    return rounds.begin(context, judge, lambda text: None, **values)


def test_what_was_liked_on_the_way_steers_the_next_round(context: Context, sessions: Sessions) -> None:
    session = begin(context)
    sessions.mark(ADA, session.id, 0, 0, 1)
    sessions.mark(ADA, session.id, 0, 2, -1)
    session = sessions.next(ADA, session.id, 0)
    ask = engine(context).asks[-1]
    images = [path.stem for path in (*ask.liked, *ask.disliked)]
    here = [Path(sample.path).stem for sample in sessions.samples(session, 0)]
    assert images == [here[0], here[2]] and ask.number == 1
    assert [one.marks for one in session.rounds] == [(1, 0, -1), (0, 0, 0)]


def test_one_may_go_back_and_on_from_there(context: Context, sessions: Sessions) -> None:
    """Rounds are a tree: what was liked on another branch does not count."""
    session = begin(context)
    sessions.next(ADA, session.id, 0)
    sessions.mark(ADA, session.id, 1, 0, 1)
    session = sessions.next(ADA, session.id, 0)
    assert engine(context).asks[-1].liked == []
    assert [(one.number, one.parent) for one in session.rounds] == [(0, -1), (1, 0), (2, 0)]
    assert [words for words, _ in rounds.history(session)] == [
        "Round 1 · 0 liked", "Round 2 · 1 liked", "Round 3 (after 1) · 0 liked",
    ]  # fmt: skip
    session = sessions.next(ADA, session.id, 1)
    assert len(engine(context).asks[-1].liked) == 1 and session.rounds[-1].parent == 1


def test_a_session_is_in_the_store_alone(context: Context) -> None:
    """Another server on the same store finds everything: nothing is remembered elsewhere."""
    session = begin(context)
    rounds.mark(context, ADA, session.id, 0, 1, 1)
    others = Sessions(context.store, context.rounds)  # type: ignore[arg-type]
    found = others.find(ADA, session.id)
    assert found.wish == session.wish and found.rounds[0].marks == (0, 1, 0)
    [(name, words)] = others.all(ADA)
    assert name == session.id and words.startswith("a hat · 1 round · 20")


def test_marks_are_set_and_not_counted(context: Context, sessions: Sessions) -> None:
    """The same mark again changes nothing; another one is a tombstone and a record: nothing is ever overwritten."""
    session = begin(context)
    before = context.store.feedback_count()
    for value, records in ((1, 1), (1, 1), (-1, 3), (0, 4), (0, 4), (1, 5)):
        sessions.mark(ADA, session.id, 0, 1, value)
        assert context.store.feedback_count() == before + records
    assert sessions.find(ADA, session.id).rounds[0].marks == (0, 1, 0)


def test_likes_teach_as_all_feedback_does(context: Context, sessions: Sessions) -> None:
    """One liked and two disliked images are two preferences and a tie; what was drawn is none."""
    session = begin(context)
    for place, value in enumerate((1, -1, -1)):
        sessions.mark(ADA, session.id, 0, place, value)
    found, dropped = pairs_from_feedback(context.store.feedback(), criterion="overall")
    assert [one.winner for one in found] == [session.rounds[0].sample_ids[0]] * 2
    assert dropped == {"tie": 1}


def test_what_was_drawn_is_nobodys_answer(context: Context, sessions: Sessions, tmp_path: Path) -> None:
    """Three rounds, one like, and a text that somebody wrote: two answers in every count; the notes of what was drawn
    still travel with the store."""
    session = begin(context)
    sessions.mark(ADA, session.id, 0, 0, 1)
    for number in range(2):
        session = sessions.next(ADA, session.id, number)
    words = Feedback(id="words", kind="text", judge=BOB, prompt_id=session.prompt.id, note="too dark",
                     sample_ids=session.rounds[0].sample_ids[:1])  # fmt: skip
    context.store.add_feedback([words])
    assert context.store.stats()["by_kind"] == {"like": 1, "text": 1}
    assert overview(context.store).kinds == {"like": 1, "text": 1}
    assert count(context.store).answers == 2
    transfer.export_file(context.store, tmp_path / "all.jsonl", "jsonl")
    with store.open(f"sqlite:///{tmp_path}/again.db") as other:
        transfer.import_file(other, tmp_path / "all.jsonl", "jsonl")
        assert len(Sessions(other, context.rounds).find(ADA, session.id).rounds) == 3  # type: ignore[arg-type]


def test_sessions_are_ones_own(context: Context, sessions: Sessions) -> None:
    session = begin(context)
    assert sessions.all(BOB) == []
    for does in (
        lambda: sessions.find(BOB, session.id), lambda: sessions.mark(BOB, session.id, 0, 0, 1),
        lambda: sessions.next(BOB, session.id, 0), lambda: sessions.find(ADA, "%"),
        lambda: sessions.find(ADA, "x" * 32),
    ):  # fmt: skip
        with pytest.raises(InputError, match="no such session of yours"):
            does()


@pytest.mark.parametrize(
    ("number", "place", "value"),
    [(1, 0, 1), (-1, 0, 1), (0, 3, 1), (0, -1, 1), (0, 0, 2), (0, 0, None), ("0", 0, 1), (0, [], 1), (0, 0, 10**30)],
)
def test_wrong_marks_are_refused(context: Context, number: Any, place: Any, value: Any) -> None:
    session = begin(context)
    before = context.store.feedback_count()
    with pytest.raises(InputError):
        rounds.mark(context, ADA, session.id, number, place, value)
    assert context.store.feedback_count() == before


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"prompt": " "}, "prompt"), ({"images": 99}, "images"), ({"strength": 2}, "strength"), ({"seed": -1}, "seed"),
        ({"engine": "x"}, "expected noise"), ({"prompt": "x" * 5000}, "prompt"), ({"images": None}, "images"),
    ],
)  # fmt: skip
def test_wrong_wishes_are_one_line(context: Context, values: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word) as error:
        begin(context, **values)
    assert "\n" not in str(error.value) and context.store.feedback_count() == 0


def test_the_next_round_takes_the_marks_on_the_screen(context: Context) -> None:
    """A mark that was just set may still be on its way: the screen sends all of them along."""
    session = begin(context)
    rounds.mark(context, ADA, session.id, 0, 0, 1)
    found = rounds.follow(context, ADA, session.id, 0, [0, -1, 1])
    assert found.rounds[0].marks == (0, -1, 1)
    ask = engine(context).asks[-1]
    assert (len(ask.liked), len(ask.disliked)) == (1, 1)
    for marks in ([1], "111", [1, 2, 3], None, [1, 1, "x"]):
        with pytest.raises(InputError):
            rounds.follow(context, ADA, session.id, 0, marks)


def test_texts_of_people_are_text(context: Context) -> None:
    session = begin(context, prompt='"><script>alert(1)</script> ${alert(2)} {{x}}')
    told = rounds.grid(context, session, 0)
    assert "<script" not in told and '"><' not in told.replace('">', "").replace("<", "")
    assert told.count("data-place") == 6 and 'aria-label="Like image 1"' in told


def test_without_anybody_who_draws_there_are_no_rounds(context: Context) -> None:
    context.rounds = SimpleNamespace(engines={})  # type: ignore[assignment]
    assert not rounds.available(context)
    context.rounds = None
    assert not rounds.available(context)
    with pytest.raises(InputError, match="nothing is drawn in rounds here"):
        begin(context)


@pytest.mark.parametrize("engines", [{}, {"noise": None}])
def test_the_tab_is_shown_where_somebody_draws(context: Context, engines: dict[str, Any]) -> None:
    import gradio as gr

    from visfeedback.app.tabs import rounds as tab

    if engines:
        engines = {"noise": engine(context)}
    context.rounds = SimpleNamespace(engines=engines)  # type: ignore[assignment]
    with gr.Blocks(analytics_enabled=False), gr.Tab("Rounds") as made:
        tab.build(context)
    assert made.visible is bool(engines)


def test_large_images_are_made_smaller_for_the_page_only() -> None:
    assert rounds.uri(Image.new("RGB", (64, 64))).startswith("data:image/png")
    assert rounds.uri(Image.new("RGB", (2000, 900))).startswith("data:image/jpeg")


def test_what_is_said_is_shown_at_once() -> None:
    """A sentence is there while the work goes on: the work waits until it was read. The result comes last, and an error
    comes out as it was."""
    read = threading.Event()

    def work(said: Any) -> str:
        said("one")
        assert read.wait(10)
        said("two")
        return "done"

    seen = spoken(work, str.upper)
    assert next(seen) == "ONE"
    read.set()
    assert list(seen) == ["TWO", "done"]

    def fails(said: Any) -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        list(spoken(fails, str.upper))


def test_engines_tell_how_it_goes_and_where_they_are(context: Context) -> None:
    """The page's listener reaches the engine in the first round and in the next ones; a past round has its number."""
    heard: list[str] = []
    drawn = engine(context).draw

    def telling(ask: Any, said: Any) -> Any:
        said(f"round {ask.number} after {[past.number for past in ask.past]}")
        return drawn(ask, said)

    engine(context).draw = telling  # type: ignore[method-assign]
    values = {"prompt": "a hat", "images": 3, "seed": 1, "strength": 0.5, "engine": "noise"}
    session = rounds.begin(context, ADA, heard.append, **values)
    rounds.follow(context, ADA, session.id, 0, [0, 0, 0], heard.append)
    rounds.follow(context, ADA, session.id, 1, [0, 0, 0], heard.append)
    rounds.follow(context, ADA, session.id, 0, [0, 0, 0], heard.append)
    assert heard == ["round 0 after []", "round 1 after [0]", "round 2 after [0, 1]", "round 3 after [0]"]


@pytest.mark.slow
def test_fabric_draws_the_rounds_of_a_real_model(tmp_path: Path) -> None:
    """Likes change the next round; the same ask gives the same images; the samples say what steered them."""
    from visfeedback.app.choosing import Asking
    from visfeedback.cli._rounds import rounds as handed
    from visfeedback.cli.collect_live import Live, Painter
    from visfeedback.types.records import Prompt

    with app_server.context(f"sqlite:///{tmp_path}/p.db") as made:
        live = Live(steps=4)
        made.generator = Painter("shapes:sd", (), [Prompt.of("a circle")], live, Asking(), made.store, made.desk)
        made.rounds = handed(made.generator)  # type: ignore[assignment]
        session = begin(made, prompt="a circle", images=2, engine="fabric", strength=1.0)
        free = rounds.follow(made, ADA, session.id, 0, [0, 0])
        steered = rounds.follow(made, ADA, session.id, 0, [1, -1])
        again = begin(made, judge=BOB, prompt="a circle", images=2, engine="fabric", strength=1.0)
        same = rounds.follow(made, BOB, again.id, 0, [0, 0])
        assert again.rounds[0].sample_ids == session.rounds[0].sample_ids
        assert same.rounds[1].sample_ids == free.rounds[1].sample_ids
        assert not set(steered.rounds[2].sample_ids) & set(free.rounds[1].sample_ids)
        call = rounds.sessions(made).samples(steered, 2)[0].call
        assert call["session"] == session.id and len(call["fabric"]["liked"]) == 1
