"""Judges of the shapes world: they choose what they say they choose, and the side is random, recorded, repeatable."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from numpy.random import default_rng
from PIL.Image import Image

from visfeedback import feedback, shapes
from visfeedback.feedback import simulated, verifier
from visfeedback.plugins import InputError
from visfeedback.shapes.grammar import read
from visfeedback.shapes.renderer import draw_scene, render_image
from visfeedback.types.records import PAIR_VALUES, Feedback, Prompt, Sample, Verdict, image_id

PROMPT = Prompt.of("a red circle")


def drawn(text: str, seed: int = 0) -> Image:
    return render_image(draw_scene(read(text), default_rng(seed)))


def sample(image: Image) -> Sample:
    name = image_id(image.width, image.height, image.convert("RGB").tobytes())
    return Sample(id=name, prompt_id=PROMPT.id, prompt=PROMPT.text, path="", width=image.width, height=image.height)


def ask(judge: Any, *images: Image) -> Feedback:
    return judge.compare(PROMPT, [sample(image) for image in images], images)


RIGHT, WRONG = drawn("a red circle"), drawn("a blue square")


def test_the_verifier_prefers_the_right_image() -> None:
    judge = feedback.load("verifier:shapes")
    answer = ask(judge, WRONG, RIGHT)
    assert (answer.choice, answer.values, answer.kind) == ("b", (0.0, 1.0), "pair")
    assert ask(judge, RIGHT, WRONG).choice == "a"
    assert answer.judge == judge.name == "verifier:shapes"
    assert answer.sample_ids == (sample(WRONG).id, sample(RIGHT).id)
    assert answer.prompt_id == PROMPT.id
    assert sorted(answer.sides) == [0, 1]
    assert answer.seconds is not None and answer.seconds > 0


def test_two_equal_images_are_a_tie() -> None:
    assert ask(feedback.load("verifier:shapes"), RIGHT, RIGHT).choice == "tie"


class Fixed:
    """A verifier of numbers: the width of the image is its score in percent; even widths are right."""

    def verify(self, prompt: str, image: Image) -> Verdict:
        return Verdict(right=image.width % 2 == 0, score=image.width / 100, aspects={})


def test_right_beats_score_and_close_scores_tie() -> None:
    """Band .03: right .30 against wrong .99 -> the right one; .41 against .45 -> b; .41 against .43 -> tie."""
    judge = verifier.VerifierJudge("verifier:x", Fixed(), verifier.Settings(tie_band=0.03))
    sizes = {width: RIGHT.resize((width, 8)) for width in (30, 99, 41, 43, 45)}
    assert ask(judge, sizes[99], sizes[30]).choice == "b"
    assert ask(judge, sizes[41], sizes[45]).choice == "b"
    assert ask(judge, sizes[41], sizes[43]).choice == "tie"


def test_more_than_two_images_are_ranked() -> None:
    """Right .30 first; wrong .99 then; the two wrong .41 share rank 2."""
    judge = verifier.VerifierJudge("verifier:x", Fixed(), verifier.Settings())
    answer = ask(judge, *(RIGHT.resize((width, 8)) for width in (41, 99, 30, 41)))
    assert (answer.kind, answer.values, answer.choice) == ("ranking", (2.0, 1.0, 0.0, 2.0), None)
    assert sorted(answer.sides) == [0, 1, 2, 3]


def test_a_simulated_person_without_flaws_agrees_with_the_verifier() -> None:
    judge = feedback.load("simulated:shapes", noise=0.0, side_bias=0.0)
    assert ask(judge, WRONG, RIGHT).choice == "b"
    assert ask(judge, RIGHT, WRONG).choice == "a"


class LeftLover:
    """A person who takes whatever is on the left, and says what was shown."""

    def choose(self, prompt: Prompt, images: tuple[Image, Image]) -> tuple[str, float]:
        self.seen = images
        return "a", 1.5


def test_sides_are_told_to_the_person_recorded_and_even() -> None:
    """Whoever always takes the left image shows up as such: the winner's side is 0 in every record, while which sample
    that is varies: 400 fair coins are within 160..240 with a probability above 0.9999."""
    first_left = 0
    for i in range(400):
        judge = simulated.SimulatedJudge("simulated:x", LeftLover(), simulated.Settings(seed=i))
        answer = ask(judge, RIGHT, WRONG)
        winner = 0 if answer.choice == "a" else 1
        assert answer.sides[winner] == 0
        assert judge.person.seen[0] is (RIGHT, WRONG)[winner]
        assert (answer.values, answer.seconds) == (PAIR_VALUES[str(answer.choice)], 1.5)
        first_left += answer.sides[0] == 0
    assert 160 <= first_left <= 240


@pytest.mark.parametrize("reference", ["verifier:shapes", "simulated:shapes"])
def test_judges_repeat_themselves(reference: str) -> None:
    """The same seed gives the same answer apart from its id, its clock and how long it took."""
    fields = {"id", "created_at", "seconds"}
    one, two = (ask(feedback.load(reference, seed=3), RIGHT, WRONG).model_dump(exclude=fields) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("reference", "knobs", "name"),
    [
        ("simulated:shapes", {}, "simulated:shapes"),
        ("simulated:shapes", {"noise": 0.05, "tie_band": 0.08}, "simulated:shapes"),  # the person's own
        ("simulated:shapes", {"seed": 3}, "simulated:shapes#3"),
        ("simulated:shapes", {"noise": 0.2, "seed": 3}, "simulated:shapes#3,noise=0.2"),
        ("simulated:shapes", {"side_bias": 0.1, "tie_band": 0.0}, "simulated:shapes,tie_band=0.0,side_bias=0.1"),
        ("simulated:shapes", {"tastes": {"warm": 1.0, "dark": 0.5}}, "simulated:shapes,tastes=dark:0.5+warm:1.0"),
        ("verifier:shapes", {"seed": 3}, "verifier:shapes"),
        ("verifier:shapes", {"tie_band": 0.1}, "verifier:shapes,tie_band=0.1"),
    ],
)
def test_another_judge_has_another_name(reference: str, knobs: dict[str, Any], name: str) -> None:
    """What a careful person has answered, a careless one has not; the usual judge keeps its plain name."""
    judge = feedback.load(reference, **knobs)
    assert judge.name == ask(judge, RIGHT, WRONG).judge == name


def test_prompts_can_be_shown_before_there_are_pictures() -> None:
    for name in ("simulated:shapes", "verifier:shapes"):
        judge: Any = feedback.load(name)
        judge.check_prompt(PROMPT, WRONG)
        with pytest.raises(InputError):
            judge.check_prompt(Prompt.of("the meaning of life"), RIGHT)


def test_knobs_reach_the_person() -> None:
    judge = feedback.load("simulated:shapes", seed=4, noise=0.3, tie_band=0.2, side_bias=0.1)
    person = judge.person  # type: ignore[attr-defined]
    assert (person.seed, person.noise, person.tie_band, person.side_bias) == (4, 0.3, 0.2, 0.1)


@pytest.mark.parametrize(
    ("reference", "knobs", "line"),
    [
        ("verifer:shapes", {}, "no judge 'verifer'; did you mean 'verifier'"),
        ("queue:shapes", {}, "no judge 'queue'"),
        ("", {}, "no judge ''"),
        ("verifier", {}, "type --judge verifier:shapes"),
        ("verifier:types", {}, "type --judge verifier:shapes"),
        ("simulated:config", {}, "type --judge simulated:shapes"),
        ("simulated:types", {}, "type --judge simulated:shapes"),
        ("verifier:shapes", {"noise": 0.1}, "judge verifier has no 'noise'"),
        ("simulated:shapes", {"noise": 2}, "noise: Input should be less than or equal to 1"),
    ],
)
def test_wrong_judges_teach(reference: str, knobs: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        feedback.load(reference, **knobs)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prompt_of_another_world_and_a_crowd_are_refused() -> None:
    judge = feedback.load("simulated:shapes")
    with pytest.raises(InputError, match="compares two images, not 3"):
        ask(judge, RIGHT, WRONG, RIGHT)
    for name in ("simulated:shapes", "verifier:shapes"):
        with pytest.raises(InputError):
            feedback.load(name).compare(
                Prompt.of("the meaning of life"), [sample(RIGHT), sample(WRONG)], [RIGHT, WRONG]
            )


def test_every_judge_of_the_room_is_listed() -> None:
    assert {"verifier", "simulated"} <= set(feedback.judges())
    assert not {"queue", "sides"} & set(feedback.judges())
    assert shapes.verifier() is not None


def test_the_room_loads_no_torch() -> None:
    code = "import sys; from visfeedback.feedback import verifier, simulated, queue; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
