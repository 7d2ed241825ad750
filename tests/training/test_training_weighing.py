"""From scores to weights: a set that teaches nothing is an error at first, and is passed over later."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from visfeedback.loops._filter import Filter, Judged, passing
from visfeedback.methods.raft import RAFT
from visfeedback.plugins import InputError
from visfeedback.training.settings import settings_for
from visfeedback.training.weighing import weighed

GROUP, PROMPTS = torch.tensor([0, 0, 1, 1]), ["a", "a", "b", "b"]


def weigh(name: str, knobs: dict[str, Any], scores: list[float], state: dict[str, Any] | None = None) -> Tensor:
    """Weights of two images of each of two prompts."""
    settings = settings_for(name).model_validate({"method": {"name": name, **knobs}})
    return weighed(settings, torch.tensor(scores), GROUP, PROMPTS, {} if state is None else state)[1]


@pytest.mark.parametrize(
    ("method", "knobs", "nothing", "words"),
    [
        ("raft", {}, [1.0, 1.0, 0.0, 0.0], "every image within its prompt the same score"),
        ("raft", {}, [1.0] * 4, "gave 1 to all of 4 images"),
        ("raft", {"floor": 0.5}, [0.1, 0.2, 0.3, 0.4], r"no image passes method\.floor = 0\.5"),
        ("rwr", {}, [1.0] * 4, "gave 1 to all of 4 images"),
        ("rwr", {"over": "prompt"}, [1.0, 1.0, 0.0, 0.0], "every image within its prompt the same score"),
        ("rwr", {"weighting": "reward"}, [-1.0, -2.0, 0.0, -4.0], "no image has a score above 0"),
    ],
)
def test_a_set_without_anything_to_learn(method, knobs, nothing, words):
    """The first one stops the run and leaves no trace; after one in which 0 and 1 differ within a prompt all weights
    are 0, nothing is logged that was true of another round, and the next one is learned as ever."""
    state: dict[str, Any] = {}
    with pytest.raises(InputError, match=words):
        weigh(method, knobs, nothing, state)
    assert state == {}
    first = weigh(method, knobs, [0.0, 1.0, 0.0, 1.0], state)
    assert first.any() and state["metrics"]
    assert weigh(method, knobs, nothing, state).tolist() == [0.0] * 4 and state["metrics"] == {}
    assert torch.equal(weigh(method, knobs, [0.0, 1.0, 0.0, 1.0], state), first) and state["metrics"]


@pytest.mark.parametrize("knobs", [{}, {"over": "prompt"}])
def test_what_can_never_be_compared_is_an_error_in_every_round(knobs):
    """A single image has no other, whatever the rounds before taught."""
    settings = settings_for("rwr").model_validate({"method": {"name": "rwr", **knobs}})
    with pytest.raises(InputError, match="1 scored images"):
        weighed(settings, torch.ones(1), GROUP[:1], PROMPTS[:1], {"scores_differ": True})


@pytest.mark.parametrize(("method", "knobs"), [("raft", {"floor": 0.5}), ("rwr", {"weighting": "reward"})])
def test_equal_scores_teach_where_each_image_is_judged_by_itself(method, knobs):
    """All are good: raft learns the first of each prompt, rwr all with their score of 1."""
    expected = {"raft": [1.0, 0.0, 1.0, 0.0], "rwr": [1.0] * 4}
    assert weigh(method, knobs, [1.0] * 4).tolist() == expected[method]


def test_dreamsync_learns_from_one_passing_image_a_prompt():
    """The best passing image of a prompt has 2; where none has a second one all that are kept have the same."""
    judged = [Judged("a", 0.95, 0.9), Judged("a", 0.1, 0.9), Judged("b", 0.1, 0.1), Judged("b", 1.0, 0.7)]
    scores = [score for score in passing(judged, Filter()) if score > 0]
    assert scores == [2.0, 2.0]
    knobs = RAFT(floor=1.0, distinct=False, beta=1.0).model_dump()
    settings = settings_for("raft").model_validate({"method": {"name": "raft", **knobs}})
    assert weighed(settings, torch.tensor(scores), torch.arange(2), ["a", "b"], {})[1].tolist() == [1.0, 1.0]
