"""Size as a JPEG: numbers by hand, both signs, every image mode."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import compressibility


def _noise(size: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


IMAGES = [_noise(), Image.new("RGB", (64, 64), "red"), _noise(48, 1)]
PROMPTS = ["a", "b", "c"]


def test_is_the_size_of_the_file(tmp_path):
    """Kilobytes of 1,000 bytes of what Pillow saves with quality 95."""
    sizes = []
    for image in IMAGES:
        image.save(tmp_path / "x.jpg", quality=95)
        sizes.append((tmp_path / "x.jpg").stat().st_size / 1000)
    small, large = rewards.load("compressibility"), rewards.load("compressibility:incompressible")
    assert rewards.score(large, IMAGES, PROMPTS).tolist() == pytest.approx(sizes)
    assert rewards.score(small, IMAGES, PROMPTS).tolist() == pytest.approx([-size for size in sizes])
    assert small.encoder == large.encoder
    assert small.preprocessing == large.preprocessing


def test_the_matrix_repeats_the_score_for_every_prompt():
    reward = compressibility.load("jpeg")
    matrix = rewards.score(reward, IMAGES, ["a", "b"], "matrix")
    assert matrix.shape == (3, 2)
    assert torch.equal(matrix[:, 0], matrix[:, 1])
    assert torch.equal(matrix[:, 0], rewards.score(reward, IMAGES, PROMPTS))


def test_range_and_names():
    """The name is what was asked for: that is under which the score is found again."""
    small, large = compressibility.load(), compressibility.load("incompressible")
    assert (small.name, large.name) == ("compressibility", "compressibility:incompressible")
    assert compressibility.load("jpeg").name == "compressibility:jpeg"
    assert small.range[1] == large.range[0] == 0
    assert rewards.score(small, IMAGES, PROMPTS).max() < 0 < rewards.score(large, IMAGES, PROMPTS).min()


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "CMYK", "I;16", "1"])
def test_every_mode_is_its_rgb(mode):
    image = Image.new("I;16", (20, 30), 400) if mode == "I;16" else _noise().convert(mode)
    reward = compressibility.load()
    assert torch.equal(reward.preprocess(image), reward.preprocess(image.convert("RGB")))


def test_an_opened_jpeg_is_encoded_again_from_its_pixels():
    """The file's own size does not matter, nor its comments."""
    buffer = BytesIO()
    IMAGES[0].save(buffer, "JPEG", quality=30, comment=b"x" * 5000)
    opened = Image.open(buffer)
    reward = compressibility.load()
    assert torch.equal(reward.preprocess(opened), reward.preprocess(Image.fromarray(np.array(opened))))


def test_what_no_jpeg_can_hold():
    with pytest.raises(InputError, match="65500"):
        compressibility.load().preprocess(Image.new("L", (70_000, 1)))


def test_wrong_variants_and_weights():
    with pytest.raises(InputError, match="did you mean 'incompressible'"):
        rewards.load("compressibility:incompresible")
    with pytest.raises(InputError, match="no weights"):
        rewards.load("compressibility@x.pt")
