"""ImageReward against the published package on identical random weights, its laws, and checkpoints that are wrong.

``fixtures/imagereward.json`` holds scores and token ids of image-reward 1.5 for the tiny checkpoint and the pictures of
``fixtures/blip_world.py``. The recipe: install the wheel of image-reward 1.5 without dependencies, with transformers
4.44.2, tokenizers 0.19.1, huggingface_hub 0.24.7, timm 0.6.13 and fairscale 0.4.13 beside it; register empty modules
``ImageReward`` and ``ImageReward.models`` whose ``__path__`` points into the wheel, so that its ``__init__`` does not
run; let ``create_vit`` give a VisionTransformer and the head an MLP of the sizes of ``blip_world``; let the tokenizer
be the one of the fixture with [DEC] as bos and [ENC] added; load the state dict (all 127 keys match); call
``score(prompt, image)`` for every prompt and picture. The same package on transformers 5.23, with the helpers it lost
put back, gave the same numbers.
"""

from __future__ import annotations

import json
import runpy
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import imagereward
from visfeedback.rewards._blip import collapse

FIXTURES = Path(__file__).parent / "fixtures"
WORLD = SimpleNamespace(**runpy.run_path(str(FIXTURES / "blip_world.py")))
ORACLE = json.loads((FIXTURES / "imagereward.json").read_text())
PROMPTS = list(WORLD.PROMPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return WORLD.write_folder(tmp_path_factory.mktemp("imagereward"))


@pytest.fixture(scope="module")
def reward(folder):
    return rewards.load(f"imagereward@{folder}")


@pytest.fixture(scope="module")
def images() -> dict[str, Image.Image]:
    return WORLD.images()


@pytest.fixture(scope="module")
def features(reward, images):
    return reward.encode_images(torch.stack([reward.preprocess(image) for image in images.values()]))


def _copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def _plain(reward, features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """(N,) scores by transformers' own BlipTextModel, one prompt padded to 35 as published."""
    ids = torch.nn.functional.pad(text, (0, 35 - len(text)))[None]
    mask = (torch.arange(35) < len(text)).long()[None]
    states = reward.network.text(
        input_ids=ids.expand(len(features), -1),
        attention_mask=mask.expand(len(features), -1),
        encoder_hidden_states=features,
    ).last_hidden_state
    return reward.network.head(states[:, 0])[:, 0]


@pytest.mark.parametrize("name", list(ORACLE["scores"]))
def test_equals_the_published_package(reward, images, name):
    """Every picture mode against every prompt, within 1e-5; scores of this network deviate by 0.15."""
    scores = rewards.score(reward, [images[name]], PROMPTS, "matrix")[0]
    assert (scores - torch.tensor(ORACLE["scores"][name])).abs().max() <= 1e-5


def test_tokens_are_the_published_ones_without_their_padding(reward):
    """Cut at 35 with [SEP] last; [ENC] and [PAD] written out in a prompt are the special tokens, and counted."""
    for text, published in zip(reward.encode_texts(PROMPTS), ORACLE["ids"], strict=True):
        assert text.tolist() == published[: len(text)]
        assert not any(published[len(text) :])
        assert text[-1] == WORLD.VOCAB.index("[SEP]")
        assert len(text) <= 35


def test_from_a_safetensors_file_and_from_the_file_itself(images, reward, tmp_path):
    """The same weights in three ways give the same scores; a folder prefers safetensors."""
    safe = WORLD.write_folder(tmp_path, name="ImageReward.safetensors")
    (tmp_path / "ImageReward.pt").write_bytes(b"not read")
    image = [images["square"]]
    expected = rewards.score(reward, image, PROMPTS[:1])
    for path in (safe, safe / "ImageReward.safetensors"):
        other = rewards.load(f"imagereward@{path}")
        assert torch.equal(rewards.score(other, image, PROMPTS[:1]), expected)
        assert other.encoder == reward.encoder
        assert other.origin.checkpoint_sha256 != reward.origin.checkpoint_sha256
        assert other.origin.model == str(path)


def test_another_number_of_heads_is_another_encoder(folder, images, reward, tmp_path):
    """The weights are the same, the features are not: kept ones must not be found."""
    other = _copy(folder, tmp_path / "other")
    sizes = json.loads((other / "vision_config.json").read_text())
    (other / "vision_config.json").write_text(json.dumps({**sizes, "num_attention_heads": 1}))
    one, pixels = rewards.load(f"imagereward@{other}"), reward.preprocess(images["square"])[None]
    assert not torch.allclose(one.encode_images(pixels), reward.encode_images(pixels), atol=1e-4)
    assert one.encoder != reward.encoder


def test_the_head_is_one_affine_map():
    """Five linear layers without activations equal their product; checked on layers that are not near zero."""
    widths = (6, 5, 4, 3, 1)
    generator = torch.Generator().manual_seed(0)
    layers = [
        (torch.randn(b, a, generator=generator), torch.randn(b, generator=generator)) for a, b in pairwise(widths)
    ]
    x = torch.randn(7, 6, generator=generator)
    expected = x
    for weight, bias in layers:
        expected = expected @ weight.T + bias
    weight, bias = collapse(layers)
    assert torch.allclose(x.double() @ weight.T + bias, expected.double(), atol=1e-4)


def test_matrix_paired_batches_and_singles_agree(reward, features):
    """All ways to the same score: the matrix, its diagonal, one by one, transformers' own layers padded to 35."""
    texts = reward.encode_texts(PROMPTS)
    matrix = reward.combine(features, texts, "matrix")
    assert matrix.shape == (len(features), len(texts))
    paired = reward.combine(features[:5], texts)
    assert torch.allclose(paired, matrix[:5].diagonal(), atol=1e-5)
    singles = torch.cat([reward.combine(features[i : i + 1], texts[i : i + 1]) for i in range(5)])
    assert torch.allclose(paired, singles, atol=1e-5)
    plain = torch.stack([_plain(reward, features, text) for text in texts], dim=1)
    assert torch.allclose(matrix, plain, atol=1e-5)


def test_order_does_not_matter(reward, features):
    texts = reward.encode_texts(PROMPTS)
    matrix = reward.combine(features, texts, "matrix")
    turned = reward.combine(features.flip(0), texts[::-1], "matrix")
    assert torch.allclose(turned, matrix.flip(0, 1), atol=1e-5)


def test_small_batches_change_nothing(reward, features, monkeypatch):
    """Two images and 40 tokens at a time: more pieces than images or prompts, the same scores."""
    texts = reward.encode_texts(PROMPTS)
    whole = reward.combine(features, texts, "matrix")
    monkeypatch.setattr(imagereward, "IMAGES_AT_ONCE", 2)
    monkeypatch.setattr(imagereward, "TOKENS_AT_ONCE", 40)
    assert torch.allclose(reward.combine(features, texts, "matrix"), whole, atol=1e-5)
    assert torch.allclose(reward.combine(features[:5], texts), whole[:5].diagonal(), atol=1e-5)


def test_nothing_in_gives_nothing_out(reward, features):
    texts = reward.encode_texts(PROMPTS)
    assert reward.encode_texts([]) == []
    assert reward.combine(features[:0], []).shape == (0,)
    assert reward.combine(features[:0], texts, "matrix").shape == (0, len(texts))
    assert reward.combine(features, [], "matrix").shape == (len(features), 0)


def test_with_and_without_keys_and_values(reward, features):
    """One long text per image is worth keys, a short one is not; both give the same score.

    T = 50 image tokens of D = 32, heads of d = 8: keys pay when n * 32 * (8 + 50) > 50 * 8 * (32 + n), n >= 9.
    """
    network = reward.network
    assert [network.worth_keys(features, n) for n in (8, 9)] == [False, True]
    (text,) = reward.encode_texts([PROMPTS[1]])
    ids, lengths = text.expand(len(features), 1, -1), torch.full((len(features), 1), len(text))
    with_keys = network.scores(features, ids, lengths, network.keys_values(features))
    assert torch.allclose(with_keys, network.scores(features, ids, lengths), atol=1e-5)


def test_a_second_call_finds_keys_and_values_in_the_bank(folder, images, monkeypatch):
    """New prompts for the same pictures make no keys again; other pictures do; the scores are those without a bank."""
    reward = rewards.load(f"imagereward@{folder}")
    features = reward.encode_images(torch.stack([reward.preprocess(images[n]) for n in ("square", "wide", "tall")]))
    made: list[int] = []
    compute = reward.network.keys_values
    monkeypatch.setattr(reward.network, "keys_values", lambda some: (made.append(len(some)), compute(some))[1])
    first = reward.combine(features[:2], reward.encode_texts(PROMPTS), "matrix")
    assert made == [2]
    again = reward.combine(features[:2].clone(), reward.encode_texts(PROMPTS[::-1]), "matrix")
    assert made == [2], "the same images, wherever their features lie in memory"
    assert torch.allclose(again.flip(1), first, atol=1e-6)
    reward.combine(features, reward.encode_texts(PROMPTS), "matrix")
    assert made == [2, 1], "only the new one"
    reward.bank.limit_mib = 0
    assert torch.allclose(reward.combine(features[:2], reward.encode_texts(PROMPTS), "matrix"), first, atol=1e-6)


def test_the_bank_stays_within_its_limit(folder, images):
    """Room for two images: the one that was used longest ago leaves."""
    reward = rewards.load(f"imagereward@{folder}")
    features = reward.encode_images(torch.stack([reward.preprocess(images[n]) for n in ("square", "wide", "tall")]))
    one = reward.network.keys_values(features[:1]).nbytes
    reward.bank.limit_mib = 2.5 * one / 2**20
    texts = reward.encode_texts(PROMPTS)
    for row in (0, 1, 0, 2):
        reward.combine(features[row : row + 1], texts, "matrix")
    assert len(reward.bank) == 2
    assert [reward.bank.holds(features[row : row + 1]) for row in range(3)] == [True, False, True]


def test_the_bank_is_not_asked_while_weights_are_learned(folder, images):
    """After a step on the text tower the score must follow the new weights, also without a gradient."""
    reward = rewards.load(f"imagereward@{folder}")
    features = reward.encode_images(reward.preprocess(images["square"])[None])
    texts = reward.encode_texts(PROMPTS)
    before = reward.combine(features, texts, "matrix")
    value = reward.network.text.encoder.layer[0].crossattention.self.value
    value.requires_grad_(True)
    reward.combine(features, texts, "matrix").sum().backward()
    assert value.weight.grad.abs().sum() > 0
    with torch.no_grad():
        value.weight.mul_(2)
        assert not torch.allclose(reward.combine(features, texts, "matrix"), before, atol=1e-3)


def test_from_pixels_has_a_gradient_and_is_the_published_score_at_its_size(reward):
    """At 224 x 224 nothing is resized, so both paths agree to rounding."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    unit = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).requires_grad_(True)
    scores = reward.from_pixels(unit, PROMPTS[:2])
    published = rewards.score(reward, [Image.fromarray(p) for p in pixels], PROMPTS[:2])
    assert torch.allclose(scores, published, atol=1e-5)
    scores.sum().backward()
    assert unit.grad is not None and unit.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in reward.network.parameters())


def test_from_pixels_of_another_size_is_close(reward, images):
    """Pillow rounds to bytes, torch does not: 2e-3 where scores of this network deviate by 0.15."""
    for name in ("square", "wide", "tall", "large"):
        pixels = torch.from_numpy(np.array(images[name])).permute(2, 0, 1)[None].float() / 255
        published = rewards.score(reward, [images[name]], PROMPTS[:1])
        assert torch.allclose(reward.from_pixels(pixels, PROMPTS[:1]), published, atol=2e-3)


def test_bf16_is_close_and_its_head_stays_in_fp32(folder, reward, images):
    """bf16 keeps 8 bits: scores within 0.05 of fp32."""
    half = rewards.load(f"imagereward@{folder}", dtype="bf16")
    chosen = [images["square"], images["wide"]]
    scores = rewards.score(half, chosen, PROMPTS, "matrix")
    assert scores.dtype == torch.float32
    assert half.network.head.weight.dtype == torch.float32
    assert half.origin.dtype == "bf16"
    assert torch.allclose(scores, rewards.score(reward, chosen, PROMPTS, "matrix"), atol=0.05)


def test_preprocess_may_run_in_threads(reward, images):
    """Eight threads over all modes give what one gives."""
    pictures = list(images.values()) * 4
    barrier = threading.Barrier(8)
    expected = [reward.preprocess(p) for p in pictures[: len(images)]] * 4
    with ThreadPoolExecutor(8, initializer=barrier.wait) as pool:
        assert all(map(torch.equal, pool.map(reward.preprocess, pictures), expected))


def test_known_answers_name_the_four_published_scores():
    assert [answer.score for answer in imagereward.KNOWN_ANSWERS] == [0.5812, 0.2745, -1.4132, -2.0296]
    assert [answer.file for answer in imagereward.KNOWN_ANSWERS] == ["1.webp", "2.webp", "3.webp", "4.webp"]
    assert len({answer.prompt for answer in imagereward.KNOWN_ANSWERS}) == 1


def _damage(state: dict[str, torch.Tensor], how: str) -> None:
    if how == "nan":
        state["mlp.layers.0.weight"][3, 3] = torch.nan
    elif how == "missing":
        del state["blip.visual_encoder.blocks.1.attn.qkv.weight"]
    elif how == "unknown":
        state["blip.visual_encoder.blocks.9.norm1.weight"] = torch.ones(32)
    elif how == "foreign":
        state["logit_scale"] = torch.ones(())
    elif how == "shape":
        state["blip.text_encoder.encoder.layer.0.crossattention.self.key.weight"] = torch.ones(32, 16)
    elif how == "headless":
        del state["mlp.layers.7.weight"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nan", "mlp.layers.0.weight"),
        ("missing", "encoder.layers.1.self_attn.qkv.weight"),
        ("unknown", "encoder.layers.9.layer_norm1.weight"),
        ("foreign", "logit_scale"),
        ("shape", "encoder.layer.0.crossattention.self.key.weight is 32x16, expected 32x32"),
        ("headless", "7.weight"),
    ],
)
def test_wrong_weights_are_one_line_that_names_the_first(folder, tmp_path, how, words):
    state = WORLD.state()
    _damage(state, how)
    path = _copy(folder, tmp_path / "bad") / "ImageReward.pt"
    torch.save(state, path)
    with pytest.raises(InputError) as error:
        imagereward.load(path=str(path))
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_may_be_absent(folder, tmp_path, images, reward):
    """The unused projections and position_ids: a checkpoint without them is the same model."""
    state = {n: v for n, v in WORLD.state().items() if "_proj." not in n or "blip.visual" in n}
    state = {n: v for n, v in state.items() if not n.endswith("position_ids")}
    assert len(state) == 127 - 5
    path = _copy(folder, tmp_path / "less") / "ImageReward.pt"
    torch.save(state, path)
    scores = rewards.score(imagereward.load(path=str(path)), [images["square"]], PROMPTS[:1])
    assert torch.equal(scores, rewards.score(reward, [images["square"]], PROMPTS[:1]))


def test_code_in_a_pickle_is_refused(folder, tmp_path):
    path = _copy(folder, tmp_path / "bad") / "ImageReward.pt"
    torch.save({"model": Path("/")}, path)
    with pytest.raises(InputError, match="code"):
        imagereward.load(path=str(path))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("med_config.json", "{", "med_config.json is no config"),
        ("med_config.json", '{"num_attention_heads": 5}', "do not fit"),
        ("vision_config.json", "[1]", "vision_config.json is no config"),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", "has 8 tokens, the network"),
        ("ImageReward.pt", "", "ImageReward.pt"),
    ],
)
def test_other_files_that_do_not_fit_are_one_line(folder, tmp_path, file, content, words):
    bad = _copy(folder, tmp_path / "bad")
    (bad / file).write_text(content)
    with pytest.raises(InputError) as error:
        imagereward.load(path=str(bad))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_there(folder, tmp_path, monkeypatch):
    """No weights, no tokenizer, no cache: each line says what to do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"ImageReward\.pt of THUDM/ImageReward is not on this machine"):
        rewards.load("imagereward")
    with pytest.raises(InputError, match="no variant 'v2'"):
        rewards.load("imagereward:v2")
    with pytest.raises(InputError, match=r"no ImageReward\.pt in"):
        imagereward.load(path=str(tmp_path))
    with pytest.raises(InputError, match=r"imagereward@PATH"):
        imagereward.load(path="nobody/nothing-of-the-kind")
    bare = _copy(folder, tmp_path / "bare")
    (bare / "vocab.txt").unlink()
    (bare / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"put that model's tokenizer\.json or vocab\.txt beside the weights"):
        imagereward.load(path=str(bare))
    with pytest.raises(InputError, match="no dtype"):
        imagereward.load(path=str(folder), dtype="int8")
