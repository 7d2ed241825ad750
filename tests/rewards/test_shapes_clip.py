"""The CLIP reward: published arithmetic, gradients, and folders that are not what they should be."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from visfeedback.plugins import InputError
from visfeedback.rewards import shapes_clip

PROMPTS = ["a red circle", "two blue circles", "a green star"]


def _images(count: int, size: int, seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
    return [Image.fromarray(p) for p in pixels]


def _pixels(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1).float() / 255 for i in images])


@pytest.fixture(scope="module")
def reward(tiny_clip):
    return shapes_clip.load(path=str(tiny_clip))


def _score(reward, images, prompts, pairing="paired"):
    features = reward.encode_images(torch.stack([reward.preprocess(i) for i in images]))
    return reward.combine(features, reward.encode_texts(prompts), pairing)


def test_equals_open_clip_itself(reward, tiny_clip):
    """Cosine of the two towers, as open_clip's own readme computes it."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(PROMPTS)
    images = _images(3, 40)
    with torch.no_grad():
        image = model.encode_image(torch.stack([transform(i) for i in images]))
        text = model.encode_text(tokens)
    expected = torch.nn.functional.cosine_similarity(image, text)
    assert torch.allclose(_score(reward, images, PROMPTS), expected, atol=1e-6)


def test_paired_is_the_diagonal_of_the_matrix_and_batch_equals_singles(reward):
    images = _images(3, 32)
    paired, matrix = _score(reward, images, PROMPTS), _score(reward, images, PROMPTS, "matrix")
    assert matrix.shape == (3, 3)
    assert torch.allclose(paired, matrix.diagonal(), atol=1e-6)
    singles = torch.cat([_score(reward, [i], [p]) for i, p in zip(images, PROMPTS, strict=True)])
    assert torch.allclose(paired, singles, atol=1e-6)
    assert paired.abs().max() <= 1


def test_from_pixels_equals_the_published_path_and_has_a_gradient(reward):
    """At the model's own size nothing is resized, so both paths agree to rounding."""
    images = _images(3, 32)
    pixels = _pixels(images).requires_grad_(True)
    scores = reward.from_pixels(pixels, PROMPTS)
    assert torch.allclose(scores, _score(reward, images, PROMPTS), atol=1e-5)
    scores.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


def test_from_pixels_of_another_size_is_close(reward):
    """Torch's antialiased bicubic against Pillow's on a smooth picture."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (64, 1))] * 3, axis=-1))
    exact = _score(reward, [image], PROMPTS[:1])
    assert torch.allclose(reward.from_pixels(_pixels([image]), PROMPTS[:1]), exact, atol=5e-3)


def test_weights_are_not_trained(reward):
    assert not any(p.requires_grad for p in reward._model.parameters())


def test_missing_files_and_weights_are_one_line(tiny_clip, tmp_path):
    """open_clip itself only warns and goes on with random weights."""
    from safetensors.torch import load_file, save_file

    with pytest.raises(InputError, match=r"no open_clip_config\.json"):
        shapes_clip.load(path=str(tmp_path))
    folder = tmp_path / "clip"
    shutil.copytree(tiny_clip, folder)
    weights = load_file(folder / shapes_clip.WEIGHTS)
    del weights["visual.proj"]
    save_file(weights, folder / shapes_clip.WEIGHTS)
    with pytest.raises(InputError) as error:
        shapes_clip.load(path=str(folder))
    assert "\n" not in str(error.value)
    (folder / shapes_clip.WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"no open_clip_model\.safetensors"):
        shapes_clip.load(path=str(folder))


def test_damaged_weights_are_one_line(tiny_clip, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(tiny_clip, folder)
    whole = (folder / shapes_clip.WEIGHTS).read_bytes()
    (folder / shapes_clip.WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="can be loaded"):
        shapes_clip.load(path=str(folder))


def test_unknown_variant():
    with pytest.raises(InputError, match="no variant"):
        shapes_clip.load(variant="large")


def test_weights_that_are_no_numbers_are_one_line(tiny_clip, tmp_path):
    """Before anything is scored: else every score of a long run is the failure."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "clip"
    shutil.copytree(tiny_clip, folder)
    weights = load_file(folder / shapes_clip.WEIGHTS)
    weights["visual.proj"][0, 0] = float("nan")
    save_file(weights, folder / shapes_clip.WEIGHTS)
    with pytest.raises(InputError, match=r"visual\.proj in .* is NaN"):
        shapes_clip.load(path=str(folder))
