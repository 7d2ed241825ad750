"""stats: counts that can be added up by hand, and the Wilson interval against its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scipy.stats import binomtest

from visfeedback import store
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


def test_an_empty_store_has_no_shares(opened: store.Store) -> None:
    found = opened.stats()
    assert found["left"] == {"share": None, "ci95": None, "n": 0}
    assert (found["ties"], found["median_seconds"], found["feedback"]) == (None, None, 0)


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (5, 5), (3, 7), (480, 1000)])
def test_wilson_equals_scipy(wins: int, n: int) -> None:
    low, high = binomtest(wins, n).proportion_ci(method="wilson")
    assert wilson(wins, n) == pytest.approx([low, high], abs=1e-6)
