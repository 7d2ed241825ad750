"""Active choice asks where doubt is, about what has not been judged; and a plan becomes tasks."""

from __future__ import annotations

import pytest

from visfeedback.feedback.active import active_pairs
from visfeedback.feedback.plan import Plan, gold_tasks, tasks
from visfeedback.plugins import InputError
from visfeedback.types.records import Feedback, Sample


def samples(prompts: int, models: tuple[str, ...]) -> list[Sample]:
    return [
        Sample(id=f"{p}{m}{k}", prompt_id=f"p{p}", prompt=f"p{p}", path="x", width=1, height=1, model=m)
        for p in range(prompts)
        for k, m in enumerate(models)
    ]


def vote(a: Sample, b: Sample) -> Feedback:
    return Feedback(judge="j", prompt_id=a.prompt_id, sample_ids=(a.id, b.id), choice="a", values=(1, 0))


def test_it_asks_about_the_models_that_are_close() -> None:
    """x has beaten y and z 40 times each, y and z never met: all of the next ten pairs are of y and z."""
    known = samples(40, ("x", "y", "z"))
    votes = [vote(known[3 * i], known[3 * i + k]) for i in range(40) for k in (1, 2)]
    chosen = active_pairs(known, votes, 10)
    assert {frozenset((a.model, b.model)) for a, b in chosen} == {frozenset("yz")}
    assert chosen == active_pairs(known, votes, 10)


def test_a_batch_is_spread() -> None:
    """With nothing known, six pairs about four models are all six pairs of models: no doubt is asked about twice."""
    chosen = active_pairs(samples(30, ("w", "x", "y", "z")), [], 6)
    assert len({frozenset((a.model, b.model)) for a, b in chosen}) == 6


def test_of_one_model_the_images_are_compared() -> None:
    """Nothing is asked twice, prompts come before second pairs of a prompt, and it ends when all is asked."""
    known = samples(3, ("m", "m", "m"))
    first = active_pairs(known, [vote(known[0], known[1])], 3)
    assert len({a.prompt_id for a, _ in first}) >= 2
    everything = active_pairs(known, [vote(known[0], known[1])], 100)
    assert len(everything) == 8 == len({frozenset((a.id, b.id)) for a, b in everything})
    with pytest.raises(InputError, match="two different images"):
        active_pairs(known[:1], [], 1)
    with pytest.raises(InputError, match="at least 1"):
        active_pairs(known, [], 0)


def test_a_plan_becomes_tasks() -> None:
    known = samples(50, ("x", "y"))
    pairs = list(zip(known[::2], known[1::2], strict=True))
    made = tasks(pairs, Plan(overlap=3, repeats=0.2))
    assert [task.sample_ids for task in made] == [(a.id, b.id) for a, b in pairs]
    assert {task.overlap for task in made} == {3} and 3 <= sum(task.repeat for task in made) <= 20
    (gold,) = gold_tasks(pairs, {4: "b"}, Plan())
    assert (gold.gold, gold.expected, gold.sample_ids) == (True, "b", made[4].sample_ids)
