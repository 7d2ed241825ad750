"""stats: counts that can be added up by hand, and the Wilson interval against its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from scipy.stats import binomtest

from visfeedback import store
from visfeedback.preferences.leaderboard import overview
from visfeedback.store.stats import wilson
from visfeedback.types.records import Feedback, Sample


def test_counts(filled: store.Store, make_samples: Callable[..., list[Sample]], vote: Callable[..., Feedback]) -> None:
    """Two wins for `a` shown left (2 s each); then `b` wins shown left (4 s), a tie, a skip, and one vote taken back.

    Decided with sides: 3, all won by the left image. Ties: 1 of 4 answered. Seconds: 2, 2, 2, 2, 4 -> median 2.
    """
    a, b = make_samples(prompts=1, each=2)
    filled.add_feedback([
        vote(a, b, "v2", choice="b", values=(0, 1), sides=(1, 0), seconds=4.0, judge="human:bob"),
        vote(a, b, "v3", choice="tie", values=(0.5, 0.5), criterion="style"),
        vote(a, b, "v4", choice="skip", values=()),
        vote(a, b, "v5", choice="b", values=(0, 1)),
    ])  # fmt: skip
    filled.retract("v5", judge="human:ada")
    found = filled.stats()
    assert found.pop("left") == {"share": 1.0, "ci95": [pytest.approx(0.4385, abs=1e-4), 1.0], "n": 3}
    assert found == {
        "prompts": 2, "samples": 4, "images": 4, "tombstones": 1, "retracted": 1, "feedback": 5,
        "by_kind": {"pair": 5}, "by_judge": {"human:ada": 4, "human:bob": 1},
        "by_criterion": {"overall": 4, "style": 1}, "by_choice": {"a": 2, "b": 1, "skip": 1, "tie": 1},
        "ties": 0.25, "median_seconds": 2.0,
    }  # fmt: skip


def test_statistics_do_not_depend_on_the_database(
    any_url: str, make_samples: Callable[..., list[Sample]], vote: Callable[..., Feedback], tmp_path: Path
) -> None:
    """What SQLite and PostgreSQL give back is what was said: leaderboard, agreement and quality are those of the
    records themselves, whatever the database does with order, numbers and retracted rows."""
    made = [
        sample.model_copy(update={"model": f"m{k % 3}"}) for k, sample in enumerate(make_samples(prompts=6, each=3))
    ]
    said = list(_votes(made, vote))
    with store.open(any_url, images=tmp_path / "kept") as opened:
        opened.add_samples(made, tmp_path / "images")
        opened.add_feedback(said)
        opened.retract(said[0].id, judge=said[0].judge)
        found, counts = overview(opened.feedback(), dict(opened.sources()), resamples=20), opened.stats()
    wanted = overview(said[1:], {sample.id: sample.model for sample in made}, resamples=20)
    assert found == wanted
    assert (counts["feedback"], counts["retracted"], counts["ties"]) == (53, 1, pytest.approx(9 / 53))
    assert found["agreement"]["items"] == 18
    assert [row["model"] for row in found["leaderboard"]] == ["m2", "m1", "m0"]


def _votes(made: list[Sample], vote: Callable[..., Feedback]) -> Iterator[Feedback]:
    """54 votes: three judges on the three pairs of each of six prompts. The later model wins; every sixth is a tie."""
    answers, pairs = {"b": (0.0, 1.0), "tie": (0.5, 0.5)}, ((0, 1), (0, 2), (1, 2))
    for number, (prompt, (i, j), judge) in enumerate(product(range(6), pairs, ("ada", "bob", "cy"))):
        choice = "tie" if number % 6 == 5 else "b"
        yield vote(made[3 * prompt + i], made[3 * prompt + j], f"v{number}", choice=choice, values=answers[choice],
                   judge=f"human:{judge}", sides=(number % 2, 1 - number % 2), seconds=1.0 + number / 8)  # fmt: skip


def test_an_empty_store_has_no_shares(opened: store.Store) -> None:
    found = opened.stats()
    assert found["left"] == {"share": None, "ci95": None, "n": 0}
    assert (found["ties"], found["median_seconds"], found["feedback"]) == (None, None, 0)


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (5, 5), (3, 7), (480, 1000)])
def test_wilson_equals_scipy(wins: int, n: int) -> None:
    low, high = binomtest(wins, n).proportion_ci(method="wilson")
    assert wilson(wins, n) == pytest.approx([low, high], abs=1e-6)
