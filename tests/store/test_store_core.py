"""What goes into the store comes out again, once, in order, and stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from visfeedback import store
from visfeedback.plugins import InputError
from visfeedback.types.records import Feedback, Prompt, Sample


@pytest.fixture
def url(any_url: str) -> str:
    """All of these on both databases."""
    return any_url


Make = Callable[..., list[Sample]]
Vote = Callable[..., Feedback]


def test_samples_come_back_with_paths_into_the_store(opened: store.Store, make_samples: Make, tmp_path: Path) -> None:
    """Write -> read is the identity but for the path, which now leads to the store's own copy of the same bytes."""
    samples = make_samples(prompts=3, each=2)
    assert opened.add_samples(samples, tmp_path / "images") == 6
    back = list(opened.samples())
    assert [s.model_copy(update={"path": ""}) for s in back] == [s.model_copy(update={"path": ""}) for s in samples]
    for old, new in zip(samples, back, strict=True):
        data = (tmp_path / "images" / old.path).read_bytes()
        assert Path(new.path).read_bytes() == data == opened.image_bytes(new.id)


def test_adding_again_changes_nothing(filled: store.Store, make_samples: Make, tmp_path: Path) -> None:
    samples, answers = make_samples(), list(filled.feedback())
    assert filled.add_samples(samples * 2, tmp_path / "images") == 0
    assert filled.add_feedback(answers * 2) == 0
    assert len(list(filled.samples())) == 4
    assert list(filled.feedback()) == answers


def test_a_repeated_vote_may_carry_another_time_but_not_another_answer(filled: store.Store) -> None:
    """A client that retries stamps the same vote anew: idempotent. Another answer under the same id is refused."""
    first = next(filled.feedback())
    later = first.model_copy(update={"created_at": first.created_at.replace(year=2050)})
    assert filled.add_feedback([later]) == 0
    new = first.model_copy(update={"id": "new"})
    with pytest.raises(InputError, match="another answer"):
        filled.add_feedback([new, first.model_copy(update={"choice": "b"})])
    assert next(filled.feedback()) == first
    assert "new" not in {record.id for record in filled.feedback()}, "one transaction: all or nothing"


def test_one_picture_made_twice_is_two_samples_and_one_file(
    opened: store.Store, make_samples: Make, tmp_path: Path
) -> None:
    """Base and tuned model may draw the very same pixels; both ways of making them are kept."""
    (sample,) = make_samples(prompts=1, each=1)
    twin = sample.model_copy(update={"adapter": "runs/adapter"})
    assert opened.add_samples([sample, twin], tmp_path / "images") == 2
    assert [s.adapter for s in opened.samples()] == ["", "runs/adapter"]
    assert len([p for p in opened.image_folder.root.rglob("*") if p.is_file()]) == 1


def test_retract_is_a_tombstone(filled: store.Store) -> None:
    """Undo hides a vote, keeps it on the record, and is idempotent; a tombstone cannot be undone."""
    tombstone = filled.retract("vote-0", judge="human:ada", note="slip")
    filled.retract("vote-0", judge="human:ada")
    assert [record.id for record in filled.feedback()] == ["vote-1"]
    everything = list(filled.feedback(include_retracted=True))
    assert [record.id for record in everything] == ["vote-0", "vote-1", tombstone.id]
    assert everything[-1].note == "slip"
    for name in ("nothing", tombstone.id):
        with pytest.raises(InputError, match="to take back"):
            filled.retract(name, judge="human:ada")


def test_feedback_of_one_judge(filled: store.Store, make_samples: Make, vote: Vote) -> None:
    a, b = make_samples(prompts=1, each=2)
    filled.add_feedback([vote(a, b, "other", judge="human:bob")])
    assert [record.id for record in filled.feedback(judge="human:bob")] == ["other"]


@pytest.mark.parametrize("any_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE feedback SET choice = 'b'",
        "DELETE FROM feedback",
        "INSERT OR REPLACE INTO feedback SELECT row, id, kind, 'evil', criterion, prompt_id, choice, gold, seconds, "
        "retracts, created_at, '{}' FROM feedback",
    ],
)
def test_feedback_is_append_only_for_everybody(filled: store.Store, statement: str, tmp_path: Path) -> None:
    """Also for a plain sqlite3 connection without any of our settings. REPLACE is silently without effect."""
    import sqlite3
    from contextlib import closing

    before = list(filled.feedback(include_retracted=True))
    with closing(sqlite3.connect(tmp_path / "prefs.db")) as raw:
        if "REPLACE" in statement:
            raw.execute(statement)
            raw.commit()
        else:
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(statement)
    assert list(filled.feedback(include_retracted=True)) == before


def test_changing_feedback_through_the_store_teaches(filled: store.Store) -> None:
    with pytest.raises(InputError, match=r"store\.retract"), filled.writing() as connection:
        connection.execute(text("DELETE FROM feedback"))


def test_prompts_are_filled_in_but_not_overwritten(filled: store.Store) -> None:
    """Samples know text and category; who knows split and source may add them later, in either order."""
    filled.add_prompts([Prompt.of("prompt 0", source="file", split="train", category="other")])
    prompt = next(prompt for prompt in filled.prompts() if prompt.text == "prompt 0")
    assert (prompt.source, prompt.split, prompt.category) == ("file", "train", "colors")


def test_readers_see_one_moment_while_others_write(filled: store.Store, make_samples: Make, vote: Vote) -> None:
    """An iterator that is half way does not see, and does not block, what is written meanwhile."""
    reading = filled.feedback()
    first = next(reading)
    a, b = make_samples(prompts=1, each=2)
    filled.add_feedback([vote(a, b, "meanwhile")])
    assert [record.id for record in (first, *reading)] == ["vote-0", "vote-1"]
    assert len(list(filled.feedback())) == 3


def test_unknown_sample_names_itself(opened: store.Store) -> None:
    with pytest.raises(InputError, match="no sample abc"):
        opened.image_bytes("abc")


def test_empty_prompt_is_refused(opened: store.Store, make_samples: Make, tmp_path: Path) -> None:
    (sample,) = make_samples(prompts=1, each=1)
    with pytest.raises(InputError, match="empty prompt"):
        opened.add_samples([sample.model_copy(update={"prompt": ""})], tmp_path / "images")
    assert list(opened.samples()) == []


def test_nothing_to_add_is_fine(opened: store.Store) -> None:
    opened.add_prompts([])
    assert opened.add_samples([]) == 0
    assert opened.add_feedback([]) == 0


def test_a_stream_longer_than_a_chunk(filled: store.Store, make_samples: Make, vote: Vote) -> None:
    """1,203 votes arrive and leave in order, from a generator."""
    a, b = make_samples(prompts=1, each=2)
    assert filled.add_feedback(vote(a, b, f"n{i}", judge="crowd") for i in range(1203)) == 1203
    assert [record.id for record in filled.feedback(judge="crowd")] == [f"n{i}" for i in range(1203)]
