"""The verifier as a reward: its soft score, in the shapes that every reward has."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from visfeedback import shapes
from visfeedback.plugins import InputError
from visfeedback.rewards import shapes_verifier

PROMPTS = ["a red circle", "a blue circle"]


def _circle(color: str) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse([20, 20, 44, 44], fill=color)
    return image


@pytest.fixture(scope="module")
def reward():
    return shapes_verifier.load()


def _score(reward, images, prompts, pairing="paired"):
    features = reward.encode_images(torch.stack([reward.preprocess(i) for i in images]))
    return reward.combine(features, reward.encode_texts(prompts), pairing)


def test_is_the_soft_score_of_the_verdict(reward):
    images = [_circle("red"), _circle("red")]
    expected = [shapes.verifier().verify(p, i).score for p, i in zip(PROMPTS, images, strict=True)]
    scores = _score(reward, images, PROMPTS)
    assert scores.tolist() == pytest.approx(expected)
    assert scores[0] > scores[1]
    assert all(0 <= s <= 1 for s in scores.tolist())


def test_paired_is_the_diagonal_of_the_matrix(reward):
    images = [_circle("red"), _circle("blue")]
    matrix = _score(reward, images, PROMPTS, "matrix")
    assert matrix.shape == (2, 2)
    assert torch.equal(_score(reward, images, PROMPTS), matrix.diagonal())


def test_other_worlds_and_variants_are_refused(reward):
    with pytest.raises(InputError):
        _score(reward, [_circle("red")], ["an astronaut riding a horse"])
    with pytest.raises(InputError, match="no variants"):
        shapes_verifier.load(variant="v2")
