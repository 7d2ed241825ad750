"""Simulated people answer like people: mostly right, sometimes not, and the same when asked again."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from visfeedback.plugins import InputError
from visfeedback.shapes import grammar
from visfeedback.shapes.renderer import draw_scene, render_image
from visfeedback.shapes.simulated import Person
from visfeedback.types.records import Prompt

PROMPT = Prompt.of("a red circle")


def pictures(count: int, text: str, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [render_image(draw_scene(grammar.read(text), rng)) for _ in range(count)]


def wins_of_the_right_one(person: Person, count: int = 200) -> float:
    right, wrong = pictures(count, "a red circle", 1), pictures(count, "a blue circle", 2)
    hits = 0
    for i, (good, bad) in enumerate(zip(right, wrong, strict=True)):
        images, answer = ((good, bad), "a") if i % 2 else ((bad, good), "b")
        hits += person.choose(PROMPT, images)[0] == answer
    return hits / count


def test_without_noise_the_right_picture_always_wins() -> None:
    assert wins_of_the_right_one(Person(noise=0.0)) == 1.0


def test_noise_is_the_share_of_wrong_answers() -> None:
    """300 answers at noise 0.2: 0.8 +- 3 * sqrt(.2 * .8 / 300) = 0.07."""
    assert wins_of_the_right_one(Person(noise=0.2), 300) == pytest.approx(0.8, abs=0.07)


def test_pictures_equally_good_are_ties_and_a_side_bias_breaks_them() -> None:
    left, right = pictures(2, "a red circle", 3)
    assert Person(noise=0, side_bias=0).choose(PROMPT, (left, right))[0] == "tie"
    assert Person(noise=0, side_bias=1).choose(PROMPT, (left, right))[0] == "a"


def test_the_same_question_gets_the_same_answer() -> None:
    left, right = pictures(2, "a red square", 4)
    person = Person(seed=5, noise=0.5)
    assert person.choose(PROMPT, (left, right)) == person.choose(PROMPT, (left, right))


def test_hidden_tastes_decide_between_right_pictures() -> None:
    dark, light = pictures(1, "a red circle on a black background", 6) + pictures(
        1, "a red circle on a white background", 6
    )
    assert Person(noise=0, tastes={"dark": 1.0}).choose(PROMPT, (light, dark))[0] == "b"
    assert Person(noise=0, tastes={"dark": -1.0}).choose(PROMPT, (light, dark))[0] == "a"


def test_an_unknown_taste_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'dark'"):
        Person(tastes={"drak": 1.0}).worth("a red circle", pictures(1, "a red circle", 7)[0])
