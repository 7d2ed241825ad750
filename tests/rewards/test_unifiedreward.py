"""Ratings read from answers: every way to write them, and answers without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chat_server import chat_server, choice, said
from PIL import Image
from tiny_vlm import write_tiny_vlm

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards.unifiedreward import read_rating

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)) for i in range(3)]
PROMPTS = ["a red circle", "two blue circles", "a green star"]
ACS = "Alignment Score (1-5): 2.5\nCoherence Score (1-5): 4\nStyle Score (1-5): 1"


@pytest.fixture
def server(monkeypatch):
    for name in ("VISFEEDBACK_API_KEY", "OPENAI_API_KEY", "VISFEEDBACK_VLM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with chat_server() as running:
        yield running


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Final Score: 3", 3.0),
        ("circle (object): 1\nFinal Score: 3.25", 3.25),
        ("**Final Score:** 4/5", 4.0),
        ("**Final Score**: 4", 4.0),
        ("final score : **2**.", 2.0),
        ("Final Score: 5 would be too much. Final Score: 4", 4.0),
        ("Final Score (1-5): 1", 1.0),
        ("Final Score: 0", None),
        ("Final Score: 5.5", None),
        ("Final Score: 45", None),
        ("Final Score: good", None),
        ("Semifinal Score: 3", None),
        ("3", None),
        ("", None),
    ],
)
def test_ways_to_write_a_rating(text, value):
    assert read_rating(text, "Final") == value


def test_scores_are_the_numbers_of_the_answers(server):
    server.answer = lambda payload: choice(
        f"Looks fine.\nFinal Score: {PROMPTS.index(said(payload)[-20:].split('[')[1][:-1]) + 2}"
    )
    reward = rewards.load(f"unifiedreward@tiny@{server.url}")
    assert rewards.score(reward, IMAGES, PROMPTS).tolist() == [2, 3, 4]
    assert rewards.score(reward, IMAGES[:2], PROMPTS, "matrix").tolist() == [[2, 3, 4]] * 2
    assert server.requests[0]["max_tokens"] == 512
    asked = next(text for text in map(said, server.requests) if "red circle" in text)  # they come in any order
    assert asked.startswith("You are given a text caption and a generated image based on that caption.")
    assert asked.endswith("after 'Final Score:'.\nYour task is provided as follows:\nText Caption: [a red circle]")
    assert reward.name == "unifiedreward"


@pytest.mark.parametrize(("variant", "score"), [("acs", 2.5), ("alignment", 2.5), ("coherence", 4.0), ("style", 1.0)])
def test_three_axes(server, variant, score):
    """The mean of 2.5, 4 and 1 is 2.5, as is alignment alone."""
    server.answer = lambda payload: choice(ACS)
    reward = rewards.load(f"unifiedreward:{variant}@tiny@{server.url}")
    assert rewards.score(reward, IMAGES[:1], PROMPTS[:1]).tolist() == [score]
    assert "Coherence Score (1-5): Y" in said(server.requests[0])
    assert reward.name == f"unifiedreward:{variant}"


def test_an_answer_without_a_rating_is_nan_with_a_reason(server):
    """Not zero: 0 is worse than any rating, and would teach a model to avoid what the judge did not understand."""

    def answer(payload):
        return choice("I would\nrather not say." if "blue" in said(payload) else ACS.replace("Style", "Beauty"))

    server.answer = answer
    reward = rewards.load(f"unifiedreward:acs@tiny@{server.url}")
    pixels = torch.stack([reward.preprocess(image) for image in IMAGES[:2]])
    assert reward.combine(reward.encode_images(pixels), reward.encode_texts(PROMPTS[:2])).isnan().all()
    assert "no Style Score from 1 to 5" in reward.failures[0, 0]
    assert "ends with 'I would rather not say.'" in reward.failures[1, 1]
    server.answer = lambda payload: choice(ACS)
    server.troubles = [(400, {}, {"error": {"message": "too large"}})]
    scores = reward.combine(pixels, PROMPTS[:2])
    assert scores.isnan().sum() == 1
    assert "too large" in next(iter(reward.failures.values()))


def test_an_instruction_of_ones_own(server, tmp_path):
    file = tmp_path / "their words.txt"
    file.write_text("Rate [{}] please.")
    server.answer = lambda payload: choice("Final Score: 2")
    reward = rewards.load(f"unifiedreward:final={file}@tiny@{server.url}")
    assert rewards.score(reward, IMAGES[:1], ["a {x}"]).tolist() == [2]
    assert said(server.requests[0]) == "Rate [a {x}] please."
    assert reward.origin.revision.startswith("question-")
    assert reward.name == f"unifiedreward:final={file}"


def test_from_weights_on_this_machine(tmp_path):
    """A random model writes no rating: every pair fails by itself and says so."""
    reward = rewards.load(f"unifiedreward@local:{write_tiny_vlm(tmp_path)}")
    pixels = torch.stack([reward.preprocess(image) for image in IMAGES[:2]])
    assert reward.combine(pixels, PROMPTS[:2]).isnan().all()
    assert set(reward.failures) == {(0, 0), (1, 1)}


def test_wrong_variants_and_no_model():
    with pytest.raises(InputError, match="did you mean 'alignment'"):
        rewards.load("unifiedreward:aligment@x@http://host/v1")
    with pytest.raises(InputError, match="needs a vision-language model"):
        rewards.load("unifiedreward:acs")
