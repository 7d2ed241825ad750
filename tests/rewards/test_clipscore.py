"""CLIPScore and the CLIP towers that other rewards share: against the libraries, its laws, and files that are wrong.

``fixtures/clipscore.json`` holds values of torchmetrics 1.9.0 for the tiny transformers model of
``fixtures/clip_world.py`` with the seed it names, chosen so that all are positive (torchmetrics cuts at 0). The recipe:
``clip_score(pixels, prompt, model_name_or_path=both)`` for every RGB picture and prompt, where ``both()`` gives the
model and ``CLIPProcessor(CLIPImageProcessorPil, tokenizer)`` of the folder; because this release does not know
transformers 5, the model is wrapped so that its features are ``.pooler_output``.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import _clip, clipscore

FIXTURES = Path(__file__).parent / "fixtures"
WORLD = SimpleNamespace(**runpy.run_path(str(FIXTURES / "clip_world.py")))
ORACLE = json.loads((FIXTURES / "clipscore.json").read_text())
PROMPTS, IMAGES = list(WORLD.PROMPTS), WORLD.images()
LONG = 4  # the prompt that is longer than the context


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    return WORLD.write_transformers(tmp_path_factory.mktemp("clip") / "hf")


@pytest.fixture(scope="module")
def oc(tmp_path_factory) -> Path:
    return WORLD.write_open_clip(tmp_path_factory.mktemp("clip") / "oc")


@pytest.fixture(scope="module", params=["transformers", "open_clip"])
def reward(request, hf, oc):
    return clipscore.load(path=str(hf if request.param == "transformers" else oc))


def _scores(reward, images=None, prompts=None) -> torch.Tensor:
    return rewards.score(reward, images or list(IMAGES.values()), prompts or PROMPTS, "matrix")


def _refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    return text


def _in_transformers(folder: Path) -> torch.Tensor:
    """Cosines (images, prompts), as the library's own readme computes them."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(
        PROMPTS, padding=True, truncation=True, max_length=24, return_tensors="pt"
    )
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        texts = model.get_text_features(**ids).pooler_output
        pixels = torch.cat([processor(images=i, return_tensors="pt")["pixel_values"] for i in IMAGES.values()])
        images = model.get_image_features(pixel_values=pixels).pooler_output
    return torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T


def _in_open_clip(folder: Path) -> torch.Tensor:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(PROMPTS), normalize=True)
        images = model.encode_image(torch.stack([transform(i) for i in IMAGES.values()]), normalize=True)
    return images @ texts.T


@pytest.mark.parametrize("eos", [None, 2])
def test_equals_transformers_on_every_mode_and_length(tmp_path, eos):
    """The rule for where a text ends depends on ``eos_token_id``."""
    folder = WORLD.write_transformers(tmp_path / "hf", eos=eos)
    expected = _in_transformers(folder)
    assert (_scores(clipscore.load("cosine", str(folder))) - expected).abs().max() <= 1e-6
    assert (_scores(clipscore.load("", str(folder))) - 100 * expected).abs().max() <= 1e-5


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_equals_open_clip_on_every_mode_and_length(tmp_path, quick_gelu):
    config = {**WORLD.OPEN_CONFIG, "quick_gelu": quick_gelu}
    folder = WORLD.write_open_clip(tmp_path / "oc", config=config, mean=[0.5, 0.5, 0.4], std=[0.3, 0.2, 0.2])
    expected = _in_open_clip(folder)
    assert (_scores(clipscore.load("cosine", str(folder))) - expected).abs().max() <= 1e-6
    assert (_scores(clipscore.load("", str(folder))) - 100 * expected).abs().max() <= 1e-5


TEXT_TOWERS = {
    "end by id": {"pool_type": "eos", "eos_id": 49407},
    "looks ahead": {"no_causal_mask": True},
    "last token": {"pool_type": "last"},
    "linear projection": {"proj_bias": True},
}


@pytest.mark.parametrize("name", TEXT_TOWERS)
@pytest.mark.parametrize("custom", [False, True])
def test_other_text_towers_of_open_clip_are_read_as_it_reads_them(tmp_path, name, custom):
    """Padding is only cut where nothing depends on it; these are kept whole or cut by another rule."""
    import open_clip

    config = {**WORLD.OPEN_CONFIG, "text_cfg": WORLD.OPEN_CONFIG["text_cfg"] | TEXT_TOWERS[name]}
    folder = WORLD.write_open_clip(tmp_path / "oc")
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    save_file(WORLD.drawn(WORLD.shapes_of(kind(**config))), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**config, "custom_text": custom}, "preprocess_cfg": {}})
    )
    assert (_scores(clipscore.load("cosine", str(folder))) - _in_open_clip(folder)).abs().max() <= 1e-6


def test_equals_torchmetrics_as_recorded(tmp_path):
    """All but the prompt beyond the context, from which torchmetrics cuts the end token (its issue 2883).

    Scores are near 50, where float32 counts in steps of 4e-6; 5e-5 of the score is 5e-7 of the cosine.
    """
    reward = clipscore.load(path=str(WORLD.write_transformers(tmp_path / "hf", seed=ORACLE["seed"])))
    images = {name: image for name, image in IMAGES.items() if image.mode == "RGB"}
    assert list(ORACLE["scores"]) == list(images)
    recorded = torch.tensor(list(ORACLE["scores"].values()))
    scores = _scores(reward, list(images.values()))
    assert (scores - recorded)[:, :LONG].abs().max() <= 5e-5
    assert (scores - recorded)[:, LONG].abs().min() > 0.1


def test_equals_torchmetrics_itself(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.multimodal import clip_score
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    folder = WORLD.write_transformers(tmp_path / "hf", seed=ORACLE["seed"])
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor(CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    wrapped = SimpleNamespace(
        config=model.config,
        get_image_features=lambda *a: model.get_image_features(*a).pooler_output,
        get_text_features=lambda *a: model.get_text_features(*a).pooler_output,
    )
    wrapped.to = lambda device: wrapped
    images = [image for image in IMAGES.values() if image.mode == "RGB"]
    scores = _scores(clipscore.load(path=str(folder)), images)
    for i, image in enumerate(images):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        for p, prompt in enumerate(PROMPTS[:LONG]):
            with torch.no_grad():
                expected = clip_score(pixels, prompt, model_name_or_path=lambda: (wrapped, processor))
            assert abs(scores[i, p] - expected) <= 5e-5


def test_long_prompts_keep_their_end_token(reward):
    """The last id that counts is the end, at the last place of the context (24 here, 77 in open_clip)."""
    ids, lengths = reward.towers.tokenize(PROMPTS)
    assert lengths[LONG] == ids.shape[1] in (24, 77)
    assert ids[LONG, -1] == ids[0, lengths[0] - 1] == ids.max()


def test_padding_is_not_computed(reward, monkeypatch):
    """In buckets of two, sorted by length, each bucket is as long as its longest prompt and no longer."""
    monkeypatch.setattr(_clip, "TEXTS_AT_ONCE", 2)
    seen: list[tuple[int, ...]] = []
    spy = replace(reward.towers, read=lambda ids: seen.append(tuple(ids.shape)) or reward.towers.read(ids))
    lengths = sorted(reward.towers.tokenize(PROMPTS)[1].tolist())
    vectors = spy.texts(PROMPTS)
    assert seen == [(2, lengths[1]), (2, lengths[3]), (1, lengths[4])]
    assert (vectors - reward.encode_texts(PROMPTS)).abs().max() <= 1e-6


def test_batch_equals_singles_and_order_does_not_matter(reward):
    images = [reward.preprocess(image) for image in IMAGES.values()]
    together = reward.encode_images(torch.stack(images))
    assert (together - torch.cat([reward.encode_images(i[None]) for i in images])).abs().max() <= 1e-6
    back = reward.encode_images(torch.stack(images[::-1])).flip(0)
    assert (together - back).abs().max() <= 1e-6
    texts = reward.encode_texts(PROMPTS)
    assert (texts - torch.cat([reward.encode_texts([p]) for p in PROMPTS])).abs().max() <= 1e-6
    assert (texts - reward.encode_texts(PROMPTS[::-1]).flip(0)).abs().max() <= 1e-6
    assert reward.encode_texts([]).shape == (0, WORLD.WIDTH)


def test_paired_is_the_diagonal_of_the_matrix(reward):
    images = list(IMAGES.values())[: len(PROMPTS)]
    paired, matrix = rewards.score(reward, images, PROMPTS), _scores(reward, images)
    assert (paired - matrix.diagonal()).abs().max() <= 1e-5
    assert matrix.abs().max() <= 100


def test_variants_are_scales_of_one_cosine(hf):
    """100 c, c, and 2.5 max(c, 0) of the prompt with its prefix."""
    cosines = _scores(clipscore.load("cosine", str(hf)))
    assert torch.allclose(_scores(clipscore.load("", str(hf))), 100 * cosines)
    assert torch.equal(_scores(clipscore.load("x100", str(hf))), _scores(clipscore.load("", str(hf))))
    hessel = clipscore.load("hessel", str(hf))
    prefixed = _scores(clipscore.load("cosine", str(hf)), prompts=[f"A photo depicts {p}" for p in PROMPTS])
    assert torch.allclose(_scores(hessel), 2.5 * prefixed.clamp(min=0))
    assert (hessel.name, hessel.range) == ("clipscore:hessel", (0.0, 2.5))
    assert clipscore.load("cosine", str(hf)).range == (-1.0, 1.0)
    assert clipscore.ABOUT.variants == ("x100", "cosine", "hessel")


def test_from_pixels_is_published_at_the_models_size_and_close_elsewhere(reward):
    """Cosines: equal to rounding for 32 px; within 0.01 after a resize, where Pillow rounds to 8 bits."""
    for name, apart in (("exact", 1e-5), ("wide", 1e-2), ("large", 1e-2)):
        pixels = torch.from_numpy(np.array(IMAGES[name])).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            free = reward.from_pixels(pixels, PROMPTS[:1])
        assert abs(free - _scores(reward, [IMAGES[name]], PROMPTS[:1])).item() <= 100 * apart


def test_the_gradient_is_that_of_the_score(reward):
    """Central difference of the score along the gradient's sign against the gradient's own prediction."""
    pixels = torch.from_numpy(np.array(IMAGES["square"])).permute(2, 0, 1)[None].float() / 255
    pixels = pixels.mul(0.8).add(0.1).requires_grad_(True)
    reward.from_pixels(pixels, PROMPTS[:1]).sum().backward()
    assert pixels.grad is not None
    step = 1e-3 * pixels.grad.sign()
    with torch.no_grad():
        apart = reward.from_pixels(pixels + step, PROMPTS[:1]) - reward.from_pixels(pixels - step, PROMPTS[:1])
    assert apart.item() == pytest.approx((2 * step * pixels.grad).sum().item(), rel=0.02)
    assert not any(p.requires_grad for p in reward.towers.modules.parameters())
    assert not reward.towers.modules.training


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("library", ["hf", "oc"])
def test_half_precision_towers_give_float_scores_nearby(request, library, dtype):
    """Two layers in 8 (11) bits of mantissa: cosines within 0.02 (0.004) of fp32; vectors are unit in fp32."""
    folder = str(request.getfixturevalue(library))
    exact, half = clipscore.load("cosine", folder), clipscore.load("cosine", folder, dtype=dtype)
    assert half.origin.dtype == dtype
    assert half.encoder == exact.encoder
    assert next(half.towers.modules.parameters()).dtype is getattr(torch, {"bf16": "bfloat16", "fp16": "half"}[dtype])
    vectors = half.encode_images(half.preprocess(IMAGES["wide"])[None])
    assert vectors.dtype is torch.float32
    assert vectors.norm().item() == pytest.approx(1, abs=1e-6)
    apart = (_scores(half) - _scores(exact)).abs().max().item()
    assert 0 < apart <= {"bf16": 0.02, "fp16": 0.004}[dtype]


def test_autocast_around_it_changes_nothing(reward):
    """A reward in fp32 stays so inside somebody's mixed-precision training step."""
    expected, pixels = _scores(reward), torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    free = reward.from_pixels(pixels, PROMPTS[:1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(_scores(reward), expected)
        assert torch.equal(reward.from_pixels(pixels, PROMPTS[:1]), free)


def test_the_encoder_is_the_image_tower_and_what_is_done_with_it(hf, oc, tmp_path):
    """Text weights, tokenizer and file name do not matter; image weights, activation and heads do."""
    own = clipscore.load(path=str(hf)).encoder
    weights = load_file(hf / "model.safetensors")

    def changed(name: str, change: Callable[[dict], None], settings: Callable[[dict], None] = lambda s: None) -> str:
        folder = tmp_path / name
        shutil.copytree(hf, folder)
        other = {key: value.clone() for key, value in weights.items()}
        change(other)
        save_file(other, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        settings(config)
        (folder / "config.json").write_text(json.dumps(config))
        return clipscore.load(path=str(folder)).encoder

    assert changed("text", lambda w: w["text_projection.weight"].add_(1)) == own
    assert changed("image", lambda w: w["visual_projection.weight"][0, 0].add_(1e-3)) != own
    gelu = changed("gelu", lambda w: None, lambda c: c["vision_config"].update(hidden_act="gelu"))
    heads = changed("heads", lambda w: None, lambda c: c["vision_config"].update(num_attention_heads=4))
    assert len({own, gelu, heads, clipscore.load(path=str(oc)).encoder}) == 4


def test_a_checkpoint_file_is_read_with_the_configuration_beside_it(hf, oc, tmp_path):
    for folder, stem in ((hf, "model"), (oc, "open_clip_model")):
        copy = tmp_path / stem
        shutil.copytree(folder, copy)
        state = load_file(copy / f"{stem}.safetensors")
        (copy / f"{stem}.safetensors").unlink()
        torch.save({"state_dict": state}, copy / "tuned.pt")
        scores = _scores(clipscore.load(path=str(copy / "tuned.pt")))
        assert torch.equal(scores, _scores(clipscore.load(path=str(folder))))


def test_each_library_reads_its_own_weights_in_a_folder_of_both(hf, oc, tmp_path):
    """Hub repositories of laion hold both; transformers is taken, and not by the other's file name."""
    shutil.copytree(hf, tmp_path / "both")
    shutil.copytree(oc, tmp_path / "both", dirs_exist_ok=True)
    (tmp_path / "both" / "model.safetensors").unlink()
    torch.save(load_file(hf / "model.safetensors"), tmp_path / "both" / "pytorch_model.bin")
    assert torch.equal(_scores(clipscore.load(path=str(tmp_path / "both"))), _scores(clipscore.load(path=str(hf))))
    (tmp_path / "both" / "config.json").unlink()
    assert torch.equal(_scores(clipscore.load(path=str(tmp_path / "both"))), _scores(clipscore.load(path=str(oc))))


def test_clips_own_vocabulary_stands_in_for_missing_tokenizer_files(tmp_path):
    """Ids are those of open_clip's tokenizer, which is where they come from; 49406 and 49407 are start and end."""
    import open_clip

    text = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "max_position_embeddings": 77}
    folder = WORLD.write_transformers(tmp_path / "hf", **text)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    ids, lengths = clipscore.load(path=str(folder)).towers.tokenize(PROMPTS)
    expected = open_clip.get_tokenizer("ViT-H-14")(PROMPTS)
    for own, theirs, length in zip(ids, expected, lengths.tolist(), strict=True):
        assert own[:length].tolist() == theirs[:length].tolist()
        assert own[length - 1] == 49407


def test_hub_models_come_from_the_cache_with_their_commit(hf, tmp_path, monkeypatch):
    """The cache's layout: `models--OWNER--NAME/snapshots/COMMIT` and the commit under `refs/main`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "HF_HUB_OFFLINE is set" in _refusal(clipscore.load)
    commit, repository = "ab" * 20, tmp_path / "models--openai--clip-vit-large-patch14"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(hf, repository / "snapshots" / commit)
    reward = clipscore.load()
    assert (reward.origin.model, reward.origin.revision) == ("openai/clip-vit-large-patch14", commit)
    assert reward.encoder == clipscore.load(path=str(hf)).encoder


BROKEN: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no configuration": ("hf", lambda f: (f / "config.json").unlink(), "no config.json"),
    "another model's": ("hf", lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "'bert' model"),
    "torn configuration": ("hf", lambda f: (f / "config.json").write_text('{"model_t'), "cannot be read"),
    "a list": ("hf", lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    "no weights": ("hf", lambda f: (f / "model.safetensors").unlink(), "no weights in"),
    "no weights of open_clip": ("oc", lambda f: (f / "open_clip_model.safetensors").unlink(), "no weights in"),
    "truncated": ("hf", lambda f: os.truncate(f / "model.safetensors", 5000), "damaged"),
    "zero bytes": ("oc", lambda f: os.truncate(f / "open_clip_model.safetensors", 0), "damaged"),
    "one lacking": ("hf", lambda f: _edit(f, lambda w: w.pop("visual_projection.weight")), "lacks 1 of"),
    "one too many": ("hf", lambda f: _edit(f, lambda w: w.update(extra=torch.zeros(2))), "the first is extra"),
    "other width": ("hf", lambda f: _edit(f, lambda w: w.update({"text_projection.weight": torch.zeros(3, 3)})), "3x3"),
    "not a number": ("hf", lambda f: _edit(f, lambda w: w["logit_scale"].fill_(float("nan"))), "NaN"),
    "no tokenizer": ("hf", lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "torn tokenizer": ("hf", lambda f: (f / "tokenizer.json").write_text("{"), "no tokenizer can be read"),
    "no model_cfg": ("oc", lambda f: (f / "open_clip_config.json").write_text("{}"), "no model_cfg"),
    "odd model_cfg": (
        "oc",
        lambda f: _set(f, "open_clip_config.json", ("model_cfg", "vision_cfg"), {"x": 1}),
        "no CLIP",
    ),
    "captions": ("oc", lambda f: _set(f, "open_clip_config.json", ("model_cfg", "multimodal_cfg"), {}), "CoCa"),
    "odd sizes": ("hf", lambda f: _set(f, "config.json", ("vision_config", "num_attention_heads"), 5), "no CLIP"),
    "odd type": ("hf", lambda f: _set(f, "config.json", ("vision_config", "hidden_size"), "big"), "CLIP"),
    "other size": ("hf", lambda f: _set(f, "processor_config.json", ("image_processor", "crop_size"), 64), "reads 32"),
    "large vocabulary": ("hf", lambda f: _smaller_vocabulary(f), "has 514 entries, its text tower 500"),
}


def _edit(folder: Path, change: Callable[[dict], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def _set(folder: Path, file: str, keys: tuple[str, str], value: Any) -> None:
    settings = json.loads((folder / file).read_text())
    settings[keys[0]][keys[1]] = value
    (folder / file).write_text(json.dumps(settings))


def _smaller_vocabulary(folder: Path) -> None:
    _set(folder, "config.json", ("text_config", "vocab_size"), 500)
    name = "text_model.embeddings.token_embedding.weight"
    _edit(folder, lambda w: w.update({name: w[name][:500].clone()}))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_one_line(request, tmp_path, name):
    library, breaks, says = BROKEN[name]
    folder = tmp_path / "clip"
    shutil.copytree(request.getfixturevalue(library), folder)
    breaks(folder)
    text = _refusal(clipscore.load, path=str(folder))
    assert says in text
    assert text.startswith("clipscore: ")


def test_pickles_with_code_are_refused(hf, tmp_path):
    """A whole pickled model needs code to be read."""
    folder = tmp_path / "clip"
    shutil.copytree(hf, folder)
    (folder / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")
    assert "needs code" in _refusal(clipscore.load, path=str(folder))


def test_unknown_variants_dtypes_and_places(hf):
    assert "did you mean 'hessel'" in _refusal(clipscore.load, "hesel", str(hf))
    assert "known: bf16, fp16, fp32" in _refusal(clipscore.load, path=str(hf), dtype="int8")
    assert "--reward clipscore@PATH" in _refusal(clipscore.load, path="/nowhere/at/all")
