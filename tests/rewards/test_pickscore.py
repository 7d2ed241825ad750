"""PickScore against transformers, which publishes it, and its laws. The towers' own tests are in ``test_clipscore``."""

from __future__ import annotations

import runpy
import shutil
from math import exp
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import clipscore, pickscore

WORLD = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures" / "clip_world.py")))
PROMPTS, IMAGES = list(WORLD.PROMPTS), WORLD.images()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return WORLD.write_transformers(tmp_path_factory.mktemp("pickscore") / "model")


@pytest.fixture(scope="module")
def reward(folder):
    return pickscore.load(path=str(folder))


@pytest.mark.parametrize("name", IMAGES)
def test_equals_the_published_snippet(reward, folder, name):
    """The readme of PickScore, with the Pillow processor and ``.pooler_output`` of transformers 5; prompt by prompt."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=IMAGES[name], return_tensors="pt")
    for prompt in PROMPTS:
        ids = tokenizer(prompt, padding=True, truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            image = model.get_image_features(**pixels).pooler_output
            image = image / torch.norm(image, dim=-1, keepdim=True)
            text = model.get_text_features(**ids).pooler_output
            text = text / torch.norm(text, dim=-1, keepdim=True)
            expected = model.logit_scale.exp() * (text @ image.T)[0]
        assert (rewards.score(reward, [IMAGES[name]], [prompt]) - expected).abs().item() <= 1e-5


def test_the_scale_is_the_models_own(reward, folder):
    """exp(2.5) = 12.18: cosines times that, which bounds the range."""
    cosines = rewards.score(clipscore.load("cosine", str(folder)), list(IMAGES.values()), PROMPTS, "matrix")
    scores = rewards.score(reward, list(IMAGES.values()), PROMPTS, "matrix")
    assert (scores - exp(2.5) * cosines).abs().max() <= 1e-5
    assert reward.range == pytest.approx((-exp(2.5), exp(2.5)))
    assert (reward.name, reward.differentiable, reward.reads_prompt) == ("pickscore", True, True)


def test_trimmed_texts_equal_padded_ones(reward, folder):
    """The whole context of every prompt, padded and masked, gives the vector of its own few tokens."""
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        padded = torch.nn.functional.normalize(model.get_text_features(**ids).pooler_output)
    assert (reward.encode_texts(PROMPTS) - padded).abs().max() <= 1e-6


def test_the_gradient_reaches_the_pixels(reward):
    pixels = torch.from_numpy(np.array(IMAGES["large"])).permute(2, 0, 1)[None].float() / 255
    pixels = pixels.repeat(2, 1, 1, 1).requires_grad_(True)
    scores = reward.from_pixels(pixels, PROMPTS[:2])
    scores[0].backward()
    assert pixels.grad is not None
    assert pixels.grad[0].abs().sum() > 0
    assert pixels.grad[1].abs().sum() == 0  # each score looks at its own picture


def test_the_published_repository_has_no_tokenizer_and_no_processor(folder, tmp_path):
    """Weights and configuration alone are enough: CLIP's own vocabulary and preprocessing are built in."""
    text = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "max_position_embeddings": 77}
    whole = WORLD.write_transformers(tmp_path / "whole", **text)
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(whole / name, tmp_path / "bare" / name)
    bare = pickscore.load(path=str(tmp_path / "bare"))
    assert bare.preprocessing == pickscore.load(path=str(folder)).preprocessing
    assert rewards.score(bare, [IMAGES["wide"]], PROMPTS[:1]).isfinite().all()


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no variant 'v2'"):
        pickscore.load("v2", str(folder))
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    state = load_file(broken / "model.safetensors")
    save_file(state | {"logit_scale": torch.tensor(float("inf"))}, broken / "model.safetensors")
    with pytest.raises(InputError, match=r"logit_scale in .* is NaN or infinite"):
        pickscore.load(path=str(broken))
    del state["logit_scale"]
    save_file(state, broken / "model.safetensors")
    with pytest.raises(InputError, match="lacks 1 of 78 weights, the first is logit_scale"):
        pickscore.load(path=str(broken))
