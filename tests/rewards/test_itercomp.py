"""IterComp: ImageReward's arithmetic with other weights, three files found by name, and their mean."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import itercomp

FIXTURES = Path(__file__).parent / "fixtures"
WORLD = SimpleNamespace(**runpy.run_path(str(FIXTURES / "blip_world.py")))
ORACLE = json.loads((FIXTURES / "imagereward.json").read_text())["scores"]
PROMPTS = list(WORLD.PROMPTS)
NAMES = {"attribute": "itercomp_attribute.pt", "spatial": "Spatial.safetensors", "non_spatial": "non-spatial_v1.pt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three checkpoints of different seeds below reward_models, tokenizer and configs above."""
    root = tmp_path_factory.mktemp("itercomp")
    for seed, name in enumerate(NAMES.values()):
        WORLD.write_folder(root, seed, name)
        (root / "reward_models").mkdir(exist_ok=True)
        shutil.move(root / name, root / "reward_models" / name)
    return root


@pytest.fixture(scope="module")
def images():
    return WORLD.images()


def test_a_variant_equals_the_published_package(folder, images):
    """Seed 0 is the checkpoint of the ImageReward oracle; IterComp's package is ImageReward's with other weights."""
    reward = rewards.load(f"itercomp:attribute@{folder}")
    assert reward.name == "itercomp:attribute"
    scores = rewards.score(reward, list(images.values()), PROMPTS, "matrix")
    assert torch.allclose(scores, torch.tensor([ORACLE[name] for name in images]), atol=1e-5)


def test_the_default_is_the_mean_of_the_three(folder, images):
    chosen = [images["square"], images["tall"], images["palette"]]
    each = [rewards.load(f"itercomp:{aspect}@{folder}") for aspect in NAMES]
    scores = [rewards.score(reward, chosen, PROMPTS, "matrix") for reward in each]
    for name in ("itercomp", "itercomp:mean"):
        mean = rewards.load(f"{name}@{folder}")
        assert mean.name == name
        assert torch.allclose(rewards.score(mean, chosen, PROMPTS, "matrix"), torch.stack(scores).mean(0), atol=1e-5)
        paired = rewards.score(mean, chosen, PROMPTS[:3])
        assert torch.allclose(paired, torch.stack(scores).mean(0)[:, :3].diagonal(), atol=1e-5)
    digests = {reward.origin.checkpoint_sha256 for reward in (*each, mean)}
    assert len(digests) == 4
    assert len({reward.encoder for reward in (*each, mean)}) == 4


def test_from_pixels_of_the_mean_has_a_gradient(folder):
    reward = rewards.load(f"itercomp@{folder}")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224), np.uint8)
    unit = (torch.from_numpy(pixels).float() / 255).requires_grad_(True)
    scores = reward.from_pixels(unit, PROMPTS[:2])
    expected = torch.stack([part.from_pixels(unit, PROMPTS[:2]) for part in reward.parts]).mean(0)
    assert torch.allclose(scores, expected, atol=1e-5)
    scores.sum().backward()
    assert unit.grad.abs().sum() > 0


def test_equal_image_towers_run_once_and_are_shared_with_imagereward(folder, tmp_path, images):
    """Three rewards that differ in the head only: one tower, whose features serve ImageReward's as well."""
    for name in NAMES.values():
        WORLD.write_folder(tmp_path, 0, name)
    changed = WORLD.state()
    changed["mlp.layers.7.bias"] += 3
    torch.save(changed, tmp_path / NAMES["attribute"])
    WORLD.write_folder(tmp_path)
    mean, single = rewards.load(f"itercomp@{tmp_path}"), rewards.load(f"imagereward@{tmp_path}")
    assert (mean.encoder, mean.preprocessing) == (single.encoder, single.preprocessing)
    features = single.encode_images(single.preprocess(images["wide"])[None])
    assert torch.equal(mean.encode_images(mean.preprocess(images["wide"])[None]), features)
    gap = mean.combine(features, mean.encode_texts(PROMPTS[:1])) - single.combine(
        features, single.encode_texts(PROMPTS[:1])
    )
    assert gap.item() == pytest.approx(1 / 1.0333394966054072, abs=1e-5)  # a third of 3 / SCALE


@pytest.mark.parametrize(
    ("stem", "aspect"),
    [
        ("itercomp_attribute_binding", "attribute"),
        ("spatial", "spatial"),
        ("Non-Spatial", "non_spatial"),
        ("reward_nonspatial_v2", "non_spatial"),
        ("reward_model_spatial_relationship", "spatial"),
        ("unet", ""),
    ],
)
def test_the_aspect_is_read_from_the_name(stem, aspect):
    assert itercomp.aspect_of(stem) == aspect


def test_a_single_file_needs_its_variant(folder, images):
    file = folder / "attribute.pt"
    shutil.copy(folder / "reward_models" / NAMES["attribute"], file)
    try:
        one = itercomp.load("attribute", str(file))
        assert one.origin.model == str(file)
        assert rewards.score(one, [images["square"]], PROMPTS[:1]).item() == pytest.approx(
            ORACLE["square"][0], abs=1e-5
        )
        with pytest.raises(InputError, match="write itercomp:attribute@FILE"):
            itercomp.load(path=str(file))
        with pytest.raises(InputError, match="2 files for attribute"):
            itercomp.load(path=str(folder))
    finally:
        file.unlink()


def test_what_is_missing_or_does_not_fit_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="comin/IterComp is not on this machine"):
        rewards.load("itercomp")
    with pytest.raises(InputError, match="no variant 'spatail'; did you mean 'spatial'"):
        rewards.load("itercomp:spatail")
    with pytest.raises(InputError, match=r"no attribute reward in .*itercomp:attribute@FILE"):
        itercomp.load(path=str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    state = WORLD.state(2)
    del state["blip.text_encoder.encoder.layer.2.output.dense.bias"]
    torch.save(state, broken / "reward_models" / NAMES["non_spatial"])
    with pytest.raises(InputError) as error:
        itercomp.load(path=str(broken))
    assert "encoder.layer.2.output.dense.bias" in str(error.value)
    assert NAMES["non_spatial"] in str(error.value)
    assert itercomp.load("spatial", str(broken)).name == "itercomp:spatial", "the other files are whole"
