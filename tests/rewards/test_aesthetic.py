"""Aesthetic predictors against simple-aesthetics-predictor on identical random weights, and the real heads if given.

``fixtures/aesthetic.json`` holds logits of simple-aesthetics-predictor 0.1.2 (installed without dependencies) for the
tiny model and the pictures of ``fixtures/clip_world.py``. The recipe: ``AestheticsPredictorV1``, ``V2Linear`` and
``V2ReLU`` of ``CLIPVisionConfig(**TRANSFORMERS_CONFIG["vision_config"], projection_dim=16)``; load the image tower and
projection of the transformers folder and the head of ``head(variant)`` (under `predictor.` for v1); give it
``CLIPImageProcessorPil``'s pixels of each picture.

Real heads: set VISFEEDBACK_AESTHETIC_HEAD to the path of sac+logos+ava1-l14-linearMSE.pth, and
VISFEEDBACK_AESTHETIC_HEAD_V1 to that of sa_0_4_vit_l_14_linear.pth.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import _weights, aesthetic, clipscore

FIXTURES = Path(__file__).parent / "fixtures"
WORLD = SimpleNamespace(**runpy.run_path(str(FIXTURES / "clip_world.py")))
ORACLE = json.loads((FIXTURES / "aesthetic.json").read_text())
IMAGES = WORLD.images()
KINDS = ("v1", "v2", "v2relu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One head of each kind under its published name, and the CLIP beside them."""
    folder = tmp_path_factory.mktemp("aesthetic")
    WORLD.write_transformers(folder / "clip")
    for kind in KINDS:
        torch.save(WORLD.head(kind), folder / aesthetic.VARIANTS[kind].file)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def reward(request, folder):
    return aesthetic.load(request.param, str(folder))


def _scores(reward) -> torch.Tensor:
    return rewards.score(reward, list(IMAGES.values()), [""] * len(IMAGES))


def _in_one(folder: Path, kind: str, clip: Path) -> Path:
    """What simple-aesthetics-predictor saves: image tower and head in one file, a configuration of the tower."""
    folder.mkdir()
    trunk = {k: v for k, v in load_file(clip / "model.safetensors").items() if k.startswith("vis")}
    head = {(f"predictor.{k}" if kind == "v1" else k): v for k, v in WORLD.head(kind).items()}
    save_file(trunk | head, folder / "model.safetensors")
    config = {**WORLD.TRANSFORMERS_CONFIG["vision_config"], "projection_dim": WORLD.WIDTH}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", **config}))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_package_as_recorded(folder, kind):
    assert list(ORACLE["scores"][kind]) == list(IMAGES)
    recorded = torch.tensor(list(ORACLE["scores"][kind].values()))
    assert (_scores(aesthetic.load(kind, str(folder))) - recorded).abs().max() <= 1e-5


@pytest.mark.parametrize(("kind", "name"), [("v1", "V1"), ("v2", "V2Linear"), ("v2relu", "V2ReLU")])
def test_equals_the_package_itself(folder, tmp_path, kind, name):
    if find_spec("aesthetics_predictor") is None:
        pytest.skip("simple-aesthetics-predictor is not installed; its recorded scores are tested above")
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import aesthetics_predictor

    saved = _in_one(tmp_path / "one", kind, folder / "clip")
    config = CLIPVisionConfig(**WORLD.TRANSFORMERS_CONFIG["vision_config"], projection_dim=WORLD.WIDTH)
    model: Any = getattr(aesthetics_predictor, f"AestheticsPredictor{name}")(config).eval()
    model.load_state_dict(load_file(saved / "model.safetensors"))
    processor = CLIPImageProcessorPil.from_pretrained(folder / "clip")
    reward = aesthetic.load(kind, str(saved))
    for image in IMAGES.values():
        with torch.no_grad():
            pixels = processor(images=image, return_tensors="pt")["pixel_values"]
            expected = model(pixel_values=pixels, return_dict=True).logits[0, 0]
        assert (rewards.score(reward, [image], [""]) - expected).abs().item() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_three_places_of_weights_give_the_same_scores(folder, tmp_path, kind):
    """A folder with the published names, the head file itself, and head and tower in one."""
    from_folder = aesthetic.load(kind, str(folder))
    from_file = aesthetic.load(kind, str(folder / aesthetic.VARIANTS[kind].file))
    in_one = aesthetic.load(kind, str(_in_one(tmp_path / "one", kind, folder / "clip")))
    assert torch.equal(_scores(from_folder), _scores(from_file))
    assert torch.equal(_scores(from_folder), _scores(in_one))
    assert from_folder.encoder == from_file.encoder == in_one.encoder
    assert from_folder.preprocessing == in_one.preprocessing


def test_a_lone_head_may_have_any_name_and_be_safetensors(folder, tmp_path):
    shutil.copytree(folder / "clip", tmp_path / "clip")
    save_file(WORLD.head("v2"), tmp_path / "my_head.safetensors")
    assert torch.equal(_scores(aesthetic.load("", str(tmp_path))), _scores(aesthetic.load("v2", str(folder))))


def test_an_open_clip_tower_serves_too(tmp_path):
    """Its image tower only: the text tower may lack its tokenizer."""
    WORLD.write_open_clip(tmp_path / "clip")
    torch.save(WORLD.head("v1"), tmp_path / "head.pth")
    reward = aesthetic.load("v1", str(tmp_path / "head.pth"))
    cosine = clipscore.load(path=str(tmp_path / "clip"))
    assert (reward.encoder, reward.preprocessing) == (cosine.encoder, cosine.preprocessing)
    assert sum(p.numel() for p in reward.towers.modules.parameters()) < 100_000  # no text tower
    assert _scores(reward).isfinite().all()


def test_one_tower_serves_all_heads_and_clipscore(folder):
    """Equal encoder, preprocessing and dtype promise equal features, bit for bit."""
    others = [aesthetic.load(kind, str(folder)) for kind in KINDS] + [clipscore.load(path=str(folder / "clip"))]
    assert len({(r.encoder, r.preprocessing, r.origin.dtype) for r in others}) == 1
    pixels = torch.stack([others[0].preprocess(image) for image in IMAGES.values()])
    features = [r.encode_images(pixels) for r in others]
    assert all(torch.equal(f, features[0]) for f in features)
    for kind, own in zip(KINDS, others, strict=False):
        assert torch.equal(own.combine(features[-1], own.encode_texts([""] * len(IMAGES))), _scores(own)), kind


def test_hub_default_is_the_published_predictor(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        aesthetic.load()
    torch.save(WORLD.head("v2"), tmp_path / "head.pth")
    assert f"put a copy of that CLIP into {tmp_path / 'clip'}" in _refusal("v2", tmp_path / "head.pth")
    for hub, source in ((aesthetic.VARIANTS["v2"].hub, _in_one(tmp_path / "one", "v2", folder / "clip")),
                        (aesthetic.LARGE, folder / "clip")):  # fmt: skip
        repository = tmp_path / f"models--{hub.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("cd" * 20)
        shutil.copytree(source, repository / "snapshots" / ("cd" * 20))
    reward = aesthetic.load()
    assert (reward.origin.model, reward.origin.revision) == (aesthetic.VARIANTS["v2"].hub, "cd" * 20)
    assert torch.equal(_scores(reward), _scores(aesthetic.load("v2", str(folder))))
    alone = aesthetic.load("v2", str(tmp_path / "head.pth"))  # the CLIP comes from the cache
    assert torch.equal(_scores(alone), _scores(reward))
    assert alone.origin.model == f"{tmp_path / 'head.pth'} on {aesthetic.LARGE}"


def _layers(state: dict[str, torch.Tensor]) -> nn.Sequential:
    layers = aesthetic._stack(state["layers.0.weight"].shape[1], None)
    layers.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
    return layers.eval()


def test_a_stack_of_linear_layers_is_one():
    layers = _layers(WORLD.head("v2", width=768))
    x = nn.functional.normalize(torch.from_numpy(np.random.RandomState(0).standard_normal((64, 768))).float())
    with torch.no_grad():
        assert (layers(x) - aesthetic.collapse(layers)(x)).abs().max() <= 2e-6


def test_heads_have_their_published_places():
    """Weights at layers 0, 2, 4, 6, 7, and with ReLU at 0, 3, 6, 9, 11: 16-1024-128-64-16-1."""
    for kind, activation in (("v2", None), ("v2relu", nn.ReLU)):
        own = {f"layers.{k}": tuple(v.shape) for k, v in aesthetic._stack(16, activation).state_dict().items()}
        assert own == {name: tuple(value.shape) for name, value in WORLD.head(kind).items()}


def test_prompts_are_not_read(reward):
    """One value per picture, whatever stands in the prompt; the matrix repeats it."""
    images = list(IMAGES.values())
    matrix = rewards.score(reward, images, ["a", "b", "c"], "matrix")
    assert matrix.shape == (len(images), 3)
    assert torch.equal(matrix, _scores(reward)[:, None].expand(-1, 3))
    assert (reward.reads_prompt, reward.differentiable) == (False, True)


def test_batch_equals_singles(reward):
    singles = torch.cat([rewards.score(reward, [image], [""]) for image in IMAGES.values()])
    assert (_scores(reward) - singles).abs().max() <= 1e-5


def test_the_gradient_reaches_the_pixels(reward):
    """Central difference along the gradient's sign; the published path at the model's own size."""
    pixels = torch.from_numpy(np.array(IMAGES["exact"])).permute(2, 0, 1)[None].float() / 255
    published = rewards.score(reward, [IMAGES["exact"]], [""])
    pixels.requires_grad_(True)
    scores = reward.from_pixels(pixels, [""])
    assert (scores - published).abs().item() <= 1e-5
    scores.sum().backward()
    assert pixels.grad is not None
    step = 1e-2 * pixels.grad.sign()
    with torch.no_grad():
        apart = reward.from_pixels(pixels + step, [""]) - reward.from_pixels(pixels - step, [""])
    assert apart.item() == pytest.approx((2 * step * pixels.grad).sum().item(), rel=0.05)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_towers_keep_a_float_head(folder, dtype):
    """Unit vectors of two bf16 (fp16) layers are within 0.02 (0.004); the head of weight norm 1 passes that on."""
    exact, half = aesthetic.load("v1", str(folder)), aesthetic.load("v1", str(folder), dtype=dtype)
    assert next(half.head.parameters()).dtype is torch.float32
    assert half.origin.dtype == dtype
    apart = (_scores(half) - _scores(exact)).abs().max()
    assert 0 < apart <= {"bf16": 0.02, "fp16": 0.004}[dtype] * exact.head.weight.norm()


def test_origin_covers_head_and_tower(folder):
    """Another head on the same CLIP, or another CLIP under the same head, is another checkpoint."""
    digests = {aesthetic.load(kind, str(folder)).origin.checkpoint_sha256 for kind in KINDS}
    assert len(digests | {clipscore.load(path=str(folder / "clip")).origin.checkpoint_sha256}) == 4


def _refusal(variant: str, path: Path) -> str:
    with pytest.raises(InputError) as error:
        aesthetic.load(variant, str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_heads_of_another_kind_or_width_are_refused(folder, tmp_path):
    shutil.copytree(folder / "clip", tmp_path / "clip")
    file = tmp_path / "head.pth"
    for kind, says in (("v1", "lacks 10 of 10 weights"), ("v2relu", "lacks"), ("v2", "")):
        torch.save(WORLD.head(kind, width=16 if kind != "v2" else 12), file)
        assert (says or "0.weight is 1024x12, expected 1024x16") in _refusal("v2", file)


def test_broken_heads_are_refused(folder, tmp_path):
    shutil.copytree(folder / "clip", tmp_path / "clip")
    file = tmp_path / "head.pth"
    torch.save(_layers(WORLD.head("v2")), file)
    assert "needs code" in _refusal("", file)
    state = WORLD.head("v2")
    state["layers.4.bias"][3] = float("nan")
    torch.save(state, file)
    assert "layers.4.bias in" in _refusal("", file)
    torch.save(WORLD.head("v2"), file)
    os.truncate(file, file.stat().st_size // 2)
    assert "damaged" in _refusal("", file)
    file.write_bytes(b"")
    assert str(file) in _refusal("", file)


def test_folders_without_one_head_are_refused(folder, tmp_path):
    assert "no weights in" in _refusal("", tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save(WORLD.head("v2"), tmp_path / name)
    assert "2 files of weights in" in _refusal("", tmp_path)
    assert "did you mean 'v2relu'" in _refusal("v2rel", folder)
    assert "no file or folder" in _refusal("", tmp_path / "none.pth")


def test_a_clip_without_a_head_is_refused(folder, tmp_path):
    assert "lacks 10 of 10 weights" in _refusal("v2", folder / "clip")
    assert "a CLIP without a head" in _refusal("v2", WORLD.write_open_clip(tmp_path / "open"))


def _real(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"set {variable} to the path of the published head to test it")
    return Path(value)


def test_the_real_v2_head_is_one_affine_map():
    """Published: bias 5.236646, weight norm 17.9956; the layers and their product differ by rounding only."""
    file = _real("VISFEEDBACK_AESTHETIC_HEAD")
    state = _weights.read_state(file, "aesthetic")
    head = aesthetic._head("v2", state, 768, file, "aesthetic")
    assert isinstance(head, nn.Linear)
    assert head.bias.item() == pytest.approx(5.236646, abs=1e-6)
    assert head.weight.norm().item() == pytest.approx(17.9956, abs=1e-4)
    x = nn.functional.normalize(torch.from_numpy(np.random.RandomState(0).standard_normal((1000, 768))).float())
    with torch.no_grad():
        assert (_layers(state)(x) - head(x)).abs().max() <= 5e-6


def test_the_real_v1_head_is_one_layer():
    file = _real("VISFEEDBACK_AESTHETIC_HEAD_V1")
    head = aesthetic._head("v1", _weights.read_state(file, "aesthetic"), 768, file, "aesthetic")
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (768, 1)
