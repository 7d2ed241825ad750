"""HPSv3 at tiny random size: equal to the published class, with plain positions, and work shared between pairs."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_hpsv3 import write_tiny_hpsv3

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import _hpsv3_network, hpsv3
from visfeedback.types.files import file_sha256

FIXTURE = Path(__file__).parent / "fixtures" / "hpsv3.json"
MODES = {"RGB": (64, 64), "P": (300, 200), "RGBA": (120, 480), "L": (900, 100), "CMYK": (448, 448), "LA": (50, 61)}
PROMPTS = ["a cat", "a red dog on a {mat}", "x", "a cat and two stars, oil painting", "", 'a sign "YES" \n at night']


def make_images() -> list[Image.Image]:
    """One of each mode, square, wide and tall, of seeded noise; the palette is seeded too."""
    generator = np.random.default_rng(0)
    images = []
    for mode, (width, height) in MODES.items():
        bands = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}.get(mode, 1)
        pixels = generator.integers(0, 256, (height, width, bands), np.uint8)
        image = Image.frombytes(mode, (width, height), pixels.tobytes())
        if mode == "P":
            image.putpalette(generator.integers(0, 256, 768, np.uint8).tolist())
        images.append(image)
    return images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_hpsv3(tmp_path_factory.mktemp("hpsv3"))


@pytest.fixture(scope="module")
def reward(folder):
    return hpsv3.load(path=str(folder))


def test_equals_the_published_class(reward):
    """Scores and pixels of the package hpsv3 1.0.0 with the same weights.

    Made once: transformers 4.45.2, the package's own class, instruction and image code; its imports of trl, peft,
    datasets and tensorboard replaced by empty modules (they serve training). Weights of ``tiny_state`` in fp32, with
    every ``inv_freq`` buffer cast to bf16, as the package's ``model.to(torch.bfloat16)`` does, and for ``scores_bf16``
    everything. Token ids were handed in, since 4.45 cannot read that tokenizer; images as above.
    """
    given = json.loads(FIXTURE.read_text())
    texts = [hpsv3.INSTRUCTION.replace("{text_prompt}", prompt) for prompt in PROMPTS]
    assert [hashlib.sha256(text.encode()).hexdigest() for text in texts] == given["text_sha256"]
    images = make_images()
    pixels = [_hpsv3_network.patches(reward.preprocess(image)[None]).double() for image in images]
    assert [list(p.shape) for p in pixels] == given["patches"]
    assert [p.abs().sum().item() for p in pixels] == pytest.approx(given["absolute_sums"], rel=1e-7)
    found = rewards.score(reward, images, PROMPTS)
    assert (found - torch.tensor(given["scores"])).abs().max() <= 1e-5


def test_the_rounded_frequencies_matter(reward):
    """With frequencies in fp32, as transformers makes them, scores are elsewhere by far more than rounding."""
    given = json.loads(FIXTURE.read_text())
    gap = np.abs(np.subtract(given["scores"], given["scores_fp32_frequencies"])).max()
    assert gap > 0.1
    assert torch.equal(
        reward._network.language_model.rotary_emb.inv_freq,
        reward._network.language_model.rotary_emb.inv_freq.bfloat16().float(),
    )


def test_positions_are_plain_and_not_those_of_qwen2_vl(reward, folder):
    """The language model called with 0, 1, 2, ... gives the score; transformers' own three axes give another one."""
    from transformers import Qwen2VLModel

    image, prompt = make_images()[0], PROMPTS[0]
    pixels = reward.preprocess(image)[None]
    tokens = reward.encode_texts([prompt])[0]
    features = reward.encode_images(pixels)
    length = features.shape[1]
    ids = torch.cat([tokens.before, torch.full((length,), reward._image_token), tokens.after])[None]
    network = reward._network
    whole = Qwen2VLModel(_config(folder, len(network.language_model.embed_tokens.weight)))
    whole.visual, whole.language_model = network.visual, network.language_model
    asked = {
        "input_ids": ids,
        "pixel_values": _hpsv3_network.patches(pixels),
        "image_grid_thw": torch.tensor([[1, 32, 32]]),
    }
    plain = torch.arange(ids.shape[1]).expand(3, 1, -1)
    with torch.no_grad():
        sequential = whole(**asked, position_ids=plain).last_hidden_state
        threefold = whole(**asked, mm_token_type_ids=(ids == reward._image_token).int()).last_hidden_state
        ours = reward.combine(features, [tokens])
        expected, other = (network.rm_head(states[:, -1])[:, 0] for states in (sequential, threefold))
    assert torch.allclose(ours, expected, atol=1e-5)
    assert (expected - other).abs() > 1e-2


def _config(folder, rows):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    config.text_config.vocab_size = rows
    return config


def test_batch_equals_singles_and_paired_is_the_diagonal(reward):
    """Right padding, and the shared beginning whose keys and values are computed once per image."""
    images = [make_images()[0].resize((64, 64)), make_images()[3].resize((64, 64)), make_images()[0].rotate(90)]
    prompts = [PROMPTS[3], PROMPTS[0], "a completely different and longer prompt than the two before it"]
    paired = rewards.score(reward, images, prompts)
    matrix = rewards.score(reward, images, prompts, "matrix")
    singles = torch.cat([rewards.score(reward, [i], [p]) for i, p in zip(images, prompts, strict=True)])
    assert (paired - singles).abs().max() <= 1e-5
    assert (matrix.diagonal() - singles).abs().max() <= 1e-5
    swapped = rewards.score(reward, images[::-1], prompts[::-1], "matrix")
    assert (swapped - matrix.flip(0, 1)).abs().max() <= 1e-5
    assert matrix.std() > 0.01


def test_one_prompt_for_all_and_equal_prompts(reward):
    images = make_images()[:2]
    column = rewards.score(reward, images, ["a cat"], "matrix")
    twice = rewards.score(reward, images, ["a cat", "a cat"], "matrix")
    assert (twice - column).abs().max() <= 1e-5


def test_control_tokens_in_a_prompt_fail_that_prompt(reward):
    """A second `<|Reward|>` would move the place where the score is read."""
    images = make_images()[:2]
    prompts = ["a cat", "a cat <|Reward|> best"]
    paired = rewards.score(reward, images, prompts)
    assert not paired[0].isnan()
    assert paired[1].isnan()
    assert reward.failures == {} or list(reward.failures) == [(0, 0)]  # sizes differ: `score` combines twice
    features = reward.encode_images(torch.stack([reward.preprocess(images[0])] * 2))
    matrix = reward.combine(features, reward.encode_texts(prompts), "matrix")
    assert matrix[:, 1].isnan().all()
    assert not matrix[:, 0].isnan().any()
    assert list(reward.failures) == [(0, 1), (1, 1)]
    assert "'<|Reward|>'" in reward.failures[0, 1]
    assert reward.unfit(prompts[1]) == reward.failures[0, 1] and reward.unfit(prompts[0]) == ""
    assert reward.combine(features, reward.encode_texts(["<|im_end|>"] * 2)).isnan().all()
    assert list(reward.failures) == [(0, 0), (1, 1)]


def test_gradient_reaches_the_pixels(reward):
    """At a size that is not resized both paths agree; elsewhere they differ by the resampling."""
    image = make_images()[4].convert("RGB")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    pixels.requires_grad_(True)
    scores = reward.from_pixels(pixels, PROMPTS[:1])
    assert torch.allclose(scores, rewards.score(reward, [image], PROMPTS[:1]), atol=1e-5)
    scores.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4), (100, 150), mode="bilinear")
    picture = Image.fromarray((smooth[0].permute(1, 2, 0) * 255).round().byte().numpy())
    rounded = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    assert torch.allclose(
        reward.from_pixels(rounded, PROMPTS[:1]), rewards.score(reward, [picture], PROMPTS[:1]), atol=2e-2
    )


def test_bf16_is_close_to_the_published_bf16(folder, reward):
    """The two implementations round in other places: 0.008 apart here, where bf16 moves scores by 0.05."""
    half = hpsv3.load(path=str(folder), dtype="bf16")
    assert half.origin.dtype == "bf16"
    assert half.encoder != reward.encoder
    given = json.loads(FIXTURE.read_text())
    found = rewards.score(half, make_images(), PROMPTS)
    assert (found - torch.tensor(given["scores_bf16"])).abs().max() <= 0.03


@pytest.mark.parametrize(
    "size", [(64, 64), (448, 448), (300, 201), (100, 20_000), (31, 29), (1, 1), (4000, 3000), (6000, 30)]
)
def test_smart_size_is_qwens_rule(size):
    """transformers' own function with the least and the most pixels set to 200,704, where it takes small images."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    found = _hpsv3_network.smart_size(*size)
    assert all(side % 28 == 0 and side > 0 for side in found)
    if min(size) >= 28:
        assert found == smart_resize(*size, 28, _hpsv3_network.PIXELS, _hpsv3_network.PIXELS)


def test_sides_of_more_than_one_to_200_are_refused(reward):
    with pytest.raises(InputError, match="1:200"):
        reward.preprocess(Image.new("RGB", (402, 2)))


def test_patches_are_those_of_the_processor(reward):
    """Pixels in blocks of 2 x 2 patches, each twice, as transformers' Pillow processor lays them out."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = make_images()[4].convert("RGB")
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280})
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    assert (_hpsv3_network.patches(reward.preprocess(image)[None]) - expected).abs().max() <= 1e-6


def test_what_it_says_of_itself(reward, folder):
    assert reward.origin.checkpoint_sha256 == file_sha256(folder / hpsv3.FILE)
    assert reward.origin.model == str(folder)
    assert reward.range == (-math.inf, math.inf)
    assert not any(p.requires_grad for p in reward._network.parameters())
    assert rewards.load(f"hpsv3@{folder / hpsv3.FILE}").encoder == reward.encoder


def test_the_layout_of_later_transformers_loads_too(folder, reward, tmp_path):
    copy = _copy(folder, tmp_path)
    state = load_file(folder / hpsv3.FILE)
    later = {
        f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1): value
        for name, value in state.items()
        if name != "lm_head.weight"
    }
    save_file(later, copy / hpsv3.FILE)
    images = make_images()[:1]
    assert torch.equal(rewards.score(hpsv3.load(path=str(copy)), images, ["a"]), rewards.score(reward, images, ["a"]))


def test_a_torch_file_with_a_model_key_loads(folder, reward, tmp_path):
    copy = _copy(folder, tmp_path)
    torch.save({"model": load_file(folder / hpsv3.FILE)}, copy / "checkpoint.pth")
    images = make_images()[:1]
    loaded = hpsv3.load(path=str(copy / "checkpoint.pth"))
    assert torch.equal(rewards.score(loaded, images, ["a"]), rewards.score(reward, images, ["a"]))


def _copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "hpsv3")
    return tmp_path / "hpsv3"


def _refused(path) -> str:
    with pytest.raises(InputError) as error:
        hpsv3.load(path=str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_wrong_weights_are_one_line(folder, tmp_path):
    copy = _copy(folder, tmp_path)
    file, state = copy / hpsv3.FILE, load_file(folder / hpsv3.FILE)
    save_file({k: v for k, v in state.items() if k != "rm_head.5.bias"}, file)
    assert "lacks 1 of" in _refused(copy)
    save_file(state | {"rm_head.5.weight": torch.zeros(1, 16)}, file)
    assert "rm_head.5.weight is 1x16, expected 2x16" in _refused(copy)
    save_file(state | {"rm_head.5.bias": torch.tensor([1.0, torch.inf])}, file)
    assert "rm_head.5.bias" in _refused(copy)
    save_file({"score.weight": torch.zeros(2, 2)}, file)
    assert "another model" in _refused(copy)
    save_file(state | {"model.embed_tokens.weight": state["model.embed_tokens.weight"][:-2]}, file)
    assert "has 265 embeddings" in _refused(copy)
    file.write_bytes(b"\0" * 100)
    assert "damaged" in _refused(copy)


class Code:
    """What a pickle runs when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("ran.txt"),)


def test_a_pickle_with_code_is_refused_unread(folder, tmp_path, monkeypatch):
    copy = _copy(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"rm_head.5.bias": Code()}}, copy / "checkpoint.pth")
    assert "needs code" in _refused(copy / "checkpoint.pth")
    assert not (tmp_path / "ran.txt").exists()


def test_missing_and_foreign_small_files_are_one_line(folder, tmp_path, monkeypatch):
    import huggingface_hub.constants

    copy = _copy(folder, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "another model" in _refused(copy)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "chat_template.jinja").unlink()
    assert "no chat template" in _refused(copy)
    (copy / "config.json").unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "copy its small files" in _refused(copy)
    assert "no HPSv3.safetensors" in _refused(tmp_path)
    with pytest.raises(InputError, match="no variant"):
        hpsv3.load(variant="large")
