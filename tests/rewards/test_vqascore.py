"""VQAScore from a tiny random Qwen2-VL and from a chat endpoint on this machine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chat_server import chat_server, choice, said
from PIL import Image
from tiny_vlm import write_tiny_vlm

from visfeedback import rewards, vlm
from visfeedback.plugins import InputError
from visfeedback.vlm import Question

PROMPTS = ["a red circle", 'two "blue" circles', "a {green} star"]


def _image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


IMAGES = [_image(60, 60), _image(60, 60, 1), _image(90, 40, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def reward(folder):
    return rewards.load(f"vqascore@local:{folder}")


@pytest.fixture
def server(monkeypatch):
    for name in ("VISFEEDBACK_API_KEY", "OPENAI_API_KEY", "VISFEEDBACK_VLM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with chat_server() as running:
        yield running


def test_is_the_chance_of_yes_to_the_published_question(reward, folder):
    model = vlm.connect(str(folder))
    expected = [
        model.probability([Question.about(f'Does this figure show "{p}"? Please answer Yes or No.', i)], ["Yes"])[0]
        for i, p in zip(IMAGES, PROMPTS, strict=True)
    ]
    found = rewards.score(reward, IMAGES, PROMPTS)
    assert found.tolist() == pytest.approx([reply.chances["Yes"] for reply in expected], rel=1e-4)
    assert found.unique().numel() == 3
    assert 0 <= found.min() <= found.max() <= 1


def test_batch_equals_singles_and_paired_is_the_diagonal(reward):
    paired, matrix = rewards.score(reward, IMAGES, PROMPTS), rewards.score(reward, IMAGES, PROMPTS, "matrix")
    singles = torch.cat([rewards.score(reward, [i], [p]) for i, p in zip(IMAGES, PROMPTS, strict=True)])
    assert (paired - matrix.diagonal()).abs().max() <= 1e-6
    assert (paired - singles).abs().max() <= 1e-6
    backwards = rewards.score(reward, IMAGES[::-1], PROMPTS[::-1], "matrix")
    assert (backwards.flip(0, 1) - matrix).abs().max() <= 1e-6


def test_from_an_endpoint(server):
    """The server says Yes with the chance that stands in the prompt; `@` in the reference twice."""
    server.answer = lambda payload: choice("Yes", {"Yes": float(said(payload).split('"')[1]), "No": 0.1})
    reward = rewards.load(f"vqascore@tiny@{server.url}")
    assert rewards.score(reward, IMAGES, ["0.2", "0.5", "0.8"]).tolist() == pytest.approx([0.2, 0.5, 0.8])
    matrix = rewards.score(reward, IMAGES, ["0.2", "0.5"], "matrix")
    assert matrix.tolist() == [pytest.approx([0.2, 0.5])] * 3
    assert reward.origin.model == f"tiny@{server.url}"
    assert reward.failures == {}


def test_one_failed_pair_is_nan_with_a_reason(server):
    def answer(payload):
        return choice("?", {"Sorry": 0.9} if "blue" in said(payload) else {"Yes": 0.75})

    server.answer = answer
    reward = rewards.load(f"vqascore@tiny@{server.url}")
    pixels = torch.stack([reward.preprocess(image) for image in IMAGES[:2]])
    scores = reward.combine(reward.encode_images(pixels), reward.encode_texts(PROMPTS[:2]), "matrix")
    assert scores[:, 0].tolist() == pytest.approx([0.75, 0.75])
    assert scores[:, 1].isnan().all()
    assert list(reward.failures) == [(0, 1), (1, 1)]
    assert "begins with 'Sorry'" in reward.failures[0, 1]
    assert reward.combine(pixels, PROMPTS[:2]).isnan().tolist() == [False, True]
    assert list(reward.failures) == [(1, 1)]


def test_an_endpoint_without_log_probabilities_ends_the_run(server):
    reward = rewards.load(f"vqascore@tiny@{server.url}")
    with pytest.raises(InputError, match="sends no log-probabilities"):
        rewards.score(reward, IMAGES[:1], PROMPTS[:1])


def test_a_question_of_ones_own(server, tmp_path):
    """It becomes part of the name and of the revision, so that its scores are not mixed up with others."""
    server.answer = lambda payload: choice("Yes", {"Yes": 0.5})
    (tmp_path / "question.txt").write_text("Is {} in it? Yes or No.\n")
    reward = rewards.load(f"vqascore:{tmp_path / 'question.txt'}@tiny@{server.url}")
    rewards.score(reward, IMAGES[:1], ["a {cat}"])
    assert said(server.requests[0]) == "Is a {cat} in it? Yes or No."
    assert reward.name == f"vqascore:{tmp_path / 'question.txt'}"
    assert reward.origin.revision.startswith("question-")
    (tmp_path / "empty.txt").write_text("Is it good?")
    with pytest.raises(InputError, match=r"has no \{\}"):
        rewards.load(f"vqascore:{tmp_path / 'empty.txt'}@tiny@{server.url}")
    with pytest.raises(InputError, match="no text file"):
        rewards.load(f"vqascore:{tmp_path / 'nothing.txt'}@tiny@{server.url}")


def test_a_model_is_needed():
    with pytest.raises(InputError, match=r"write --reward vqascore@MODEL.*local:FOLDER") as error:
        rewards.load("vqascore")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no folder"):
        rewards.load("vqascore@local:/nothing/here")
