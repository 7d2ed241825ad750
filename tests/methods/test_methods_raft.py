"""RAFT: the best of each prompt are learned, the others are not, and no choice is an error."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.methods.test_methods_rwr import GROUP, SCORES, batch, context, error
from tests.support.tiny_backbone import TinyBackbone
from visfeedback.methods.raft import RAFT
from visfeedback.plugins import InputError


def weigh(method: RAFT, scores=SCORES, group=GROUP, state: dict[str, Any] | None = None) -> list[float]:
    return method.weigh(scores, group, ["p"] * len(scores), {} if state is None else state).tolist()


def test_the_best_of_each_prompt_are_kept_ties_by_position():
    state: dict[str, Any] = {}
    assert weigh(RAFT(), state=state) == [0, 0, 1, 0, 1, 0]
    assert weigh(RAFT(best=2)) == [0, 1, 1, 0, 1, 1]
    assert state["metrics"] == {
        "kept_share": pytest.approx(1 / 3), "kept_score": 6.5, "score_round": pytest.approx(35 / 6)
    }  # fmt: skip


def test_a_prompt_whose_images_are_all_alike_teaches_nothing():
    scores = torch.tensor([1.0, 1.0, 1.0, 0.0, 2.0, 1.0])
    assert weigh(RAFT(), scores) == [0, 0, 0, 0, 1, 0]
    assert weigh(RAFT(distinct=False), scores) == [1, 0, 0, 0, 1, 0]


def test_a_floor_asks_for_a_least_score():
    assert weigh(RAFT(floor=5.0)) == [0, 0, 0, 0, 1, 0]
    assert weigh(RAFT(floor=0.5), torch.ones(6)) == [1, 0, 0, 1, 0, 0], "with a floor equal scores are good enough"
    with pytest.raises(InputError, match=r"no image passes method.floor = 50, the best has 11"):
        weigh(RAFT(floor=50.0))


def test_the_loss_is_the_likelihood_of_what_was_kept():
    tiny = TinyBackbone()
    scored = batch(tiny).rows([2, 4])
    loss, _ = RAFT().loss(tiny, scored, context())
    assert loss.item() == pytest.approx(error(tiny, scored).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("scores", "group", "message"),
    [
        (SCORES, torch.arange(6), r"every prompt has 1 image at most and method.best = 1"),
        (torch.tensor([0.0, math.inf, 1, 2, 3, 4]), GROUP, r"1 of 6 images a score that is no number"),
        (torch.full((6,), 3.0), GROUP, r"every image within its prompt the same score"),
    ],
)
def test_no_choice_is_one_line(scores, group, message):
    with pytest.raises(InputError, match=message) as found:
        weigh(RAFT(), scores, group)
    assert "\n" not in str(found.value)


def test_best_of_n_needs_more_than_n():
    assert RAFT(best=3).least_group == 4
    assert RAFT(floor=0.5).least_group == 1, "a single image may pass a floor or not"
    assert RAFT().kept_share(4) == 0.25 and RAFT(best=3, floor=0.5).kept_share(2) == 1
