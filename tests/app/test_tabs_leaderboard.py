"""Who wins, as the Leaderboard says it: with intervals, without names until asked, and honest about few votes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import app_server
import pytest

from visfeedback.app.board_models import Boards, aliases, board, chosen, sentence, short_names, shown
from visfeedback.app.context import Context
from visfeedback.app.tabs import leaderboard
from visfeedback.plugins import InputError
from visfeedback.types.records import Feedback

MAKER = {"g1": "good", "g2": "good", "m1": "middle", "m2": "middle", "b1": "bad", "b2": "bad"}
STRENGTH = {"good": 2.0, "middle": 1.0, "bad": 0.0}


def votes(count: int, seed: int = 0, judge: str = "human:ada") -> list[Feedback]:
    """The stronger model wins as often as one logit a step says: 73% of neighbours, 88% of the ends."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        a, b = rng.sample(sorted(STRENGTH), 2)
        won = rng.random() < 1 / (1 + 2.71828 ** (STRENGTH[b] - STRENGTH[a]))
        found.append(Feedback(
            id=f"{judge}{number}", judge=f"{judge}{number % 5}", prompt_id=f"p{number % 20}",
            sample_ids=(f"{a[0]}1", f"{b[0]}2"), choice="a" if won else "b", values=(1.0, 0.0) if won else (0.0, 1.0),
        ))  # fmt: skip
    return found


def test_the_order_is_found_and_said() -> None:
    found = board(votes(600), MAKER, resamples=100)
    assert [row["model"] for row in found.rows] == ["good", "middle", "bad"]
    tone, said = sentence(found, str)
    assert (tone, said) == ("good", "good is ahead of middle: 600 votes of 5 judges on 20 prompts.")


def test_few_votes_are_called_few() -> None:
    assert "Too few votes" in sentence(board(votes(12), MAKER, resamples=50), str)[1]
    assert "No votes between two models" in sentence(board([], MAKER), str)[1]


def test_equals_are_not_told_apart() -> None:
    """Every pair is won once by each side: no gap at all, so no winner and no forecast."""
    ties = [
        Feedback(id=f"{i}{c}", judge=f"human:{i % 4}", prompt_id=f"p{i}", sample_ids=("g1", "m1"), choice=c,
                 values=(1.0, 0.0) if c == "a" else (0.0, 1.0))
        for i in range(40) for c in ("a", "b")
    ]  # fmt: skip
    said = sentence(board(ties, MAKER, resamples=50), str)[1]
    assert said.startswith("No winner yet") and "more votes" not in said


def test_a_near_lead_comes_with_a_forecast() -> None:
    """60 votes that lean 33 to 27: the gap is 0.2 logits, its error about 0.26, so that some hundreds would do."""
    lean = [
        Feedback(id=str(i), judge=f"human:{i % 6}", prompt_id=f"p{i}", sample_ids=("g1", "m1"),
                 choice="a" if i % 20 < 11 else "b", values=(1.0, 0.0) if i % 20 < 11 else (0.0, 1.0))
        for i in range(60)
    ]  # fmt: skip
    said = sentence(board(lean, MAKER, resamples=100), str)[1]
    assert "may be equal" in said and "more votes settle it" in said


def test_programs_are_not_mixed_with_people_unasked() -> None:
    records = [*votes(5), *votes(7, judge="reward:x")]
    assert [len(list(chosen(records, who))) for who in ("people", "programs", "everybody")] == [5, 7, 12]  # type: ignore[arg-type]


def test_letters_follow_from_the_secret_and_not_from_rank() -> None:
    """With one secret they stay; over many secrets no model keeps the letter A: it tells nothing."""
    assert aliases(["x", "y"], "s") == aliases(["y", "x"], "s")
    assert sorted(aliases([str(n) for n in range(28)], "s").values(), key=len)[-1] in ("Model AA", "Model AB")
    assert {aliases(["good", "bad"], str(n))["good"] for n in range(20)} == {"Model A", "Model B"}


def test_adapters_are_named_by_what_tells_them_apart() -> None:
    one, two = "m+/x/runs/dpo-1/run/adapter", "m+/x/runs/dpo-2/run/adapter"
    assert list(short_names(["m", one, two]).values()) == ["m", "m + dpo-1", "m + dpo-2"]
    same = ["m+/x/dpo-1/adapter", "m+/y/dpo-1/adapter"]
    assert list(short_names(same).values()) == same


def test_names_from_outside_are_text() -> None:
    maker = {"g1": "<script>alert(1)</script>", "m1": "b"}
    records = [
        Feedback(id=str(i), judge="human:a", prompt_id="p", sample_ids=("g1", "m1"), choice="a", values=(1.0, 0.0))
        for i in range(40)
    ]
    told = shown(board(records, maker, resamples=20), str)
    assert "<script" not in told and "&lt;script&gt;" in told


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    url = f"sqlite:///{tmp_path}/p.db"
    samples = app_server.fill(url, tmp_path / "images", prompts=10, each=4)
    with app_server.context(url) as made:
        by_prompt: dict[str, list[str]] = {}
        for sample in samples:
            by_prompt.setdefault(sample.prompt_id, []).append(sample.id)
        made.store.add_feedback(  # images 0 and 2 are of the base model, 1 and 3 of the adapter: the base wins
            Feedback(judge="human:ada", prompt_id=prompt, sample_ids=(ids[i], ids[j]), choice="a", values=(1.0, 0.0))
            for prompt, ids in by_prompt.items() for i in (0, 2) for j in (1, 3)
        )  # fmt: skip
        yield made


def test_the_board_is_blind_until_names_are_asked_for(context: Context) -> None:
    hidden, named = (leaderboard.look(context, "people", names) for names in (False, True))
    assert "model-that-must-not-leak" not in hidden and "Model A" in hidden
    assert "model-that-must-not-leak + b" in named and "model-that-must-not-leak is ahead" in named


def test_the_board_is_made_again_when_something_is_said(context: Context) -> None:
    boards = Boards(context.store)
    first = boards("people")
    assert boards("people") is first and first.votes == 40
    [record, *_] = context.store.feedback()
    context.store.retract(record.id, record.judge)
    assert boards("people").votes == 39


def test_unknown_judges_are_refused(context: Context) -> None:
    with pytest.raises(InputError, match="expected people, programs, everybody"):
        leaderboard.look(context, "cats", False)
