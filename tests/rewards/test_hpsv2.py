"""HPSv2 against the hpsv2 package on identical random weights, its letterbox, and checkpoints that are wrong.

``fixtures/hpsv2.json`` holds scores of hpsv2 1.2.0 for the tiny open_clip model and the pictures of
``fixtures/clip_world.py``. The recipe: install hpsv2 1.2.0 without dependencies, clint and args beside it; copy
``bpe_simple_vocab_16e6.txt.gz`` from open_clip into ``hpsv2/src/open_clip``; build ``hpsv2.src.open_clip.model.CLIP``
of ``OPEN_CONFIG`` with ``output_dict=True`` and its ``image_transform(32, is_train=False, resize_longest_max=True)``;
put both into ``hpsv2.img_score.model_dict``; save the weights as {"state_dict": ...}; call
``hpsv2.img_score.score(picture, prompt, cp=FILE)`` for every picture and prompt. It fails for the RGBA picture.
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

import numpy as np
import pytest
import torch
from PIL import Image

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import clipscore, hpsv2
from visfeedback.rewards._pixels import OPENAI_MEAN, OPENAI_STD

FIXTURES = Path(__file__).parent / "fixtures"
WORLD = SimpleNamespace(**runpy.run_path(str(FIXTURES / "clip_world.py")))
ORACLE = json.loads((FIXTURES / "hpsv2.json").read_text())
PROMPTS, IMAGES = list(WORLD.PROMPTS), WORLD.images()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return WORLD.write_open_clip(tmp_path_factory.mktemp("hpsv2") / "model")


@pytest.fixture(scope="module")
def reward(folder):
    return hpsv2.load(path=str(folder))


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("name", ORACLE["scores"])
def test_equals_the_package_as_recorded(reward, name):
    scores = rewards.score(reward, [IMAGES[name]], PROMPTS, "matrix")[0]
    assert (scores - torch.tensor(ORACLE["scores"][name])).abs().max() <= 1e-5


def test_everything_but_rgba_is_recorded():
    assert set(IMAGES) - set(ORACLE["scores"]) == {"rgba"}


def test_equals_the_package_itself(reward, tmp_path):
    if find_spec("hpsv2") is None:
        pytest.skip("hpsv2 is not installed; its recorded scores are tested above")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from hpsv2 import img_score
            from hpsv2.src.open_clip.model import CLIP
            from hpsv2.src.open_clip.transform import image_transform
        except (ImportError, FileNotFoundError) as error:
            pytest.skip(f"hpsv2 is installed but not as the recipe above says: {error}")
        model = CLIP(**WORLD.OPEN_CONFIG, output_dict=True)
        transform = image_transform(WORLD.SIZE, is_train=False, resize_longest_max=True)
        img_score.model_dict.update(model=model, preprocess_val=transform)
        torch.save({"state_dict": WORLD.open_state()}, tmp_path / "HPS_v2_compressed.pt")
        for name, image in IMAGES.items():
            if name == "rgba":
                continue
            assert torch.equal(reward.preprocess(image), transform(image))
            for prompt in PROMPTS:
                expected = img_score.score(image, prompt, cp=str(tmp_path / "HPS_v2_compressed.pt"))[0]
                assert abs(rewards.score(reward, [image], [prompt]).item() - expected) <= 1e-6


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (96, 40), (40, 96), (31, 17), (10, 10), (500, 3)])
def test_the_letterbox_is_torchvisions(size):
    """``resize`` of the float tensor with antialias, zero bars (the odd line right and below), then CLIP's statistics.

    500 x 3 at 32 pixels: round(3 * 32 / 500) = 0 rows, for which the package fails; here one row is kept.
    """
    from torchvision.transforms import functional as tv

    image = WORLD.picture(size, 3)
    pixels, scale = tv.to_tensor(image), 32 / max(size)
    height, width = (max(round(side * scale), 1) for side in (size[1], size[0]))
    if scale != 1:
        pixels = tv.resize(pixels, [height, width], tv.InterpolationMode.BICUBIC, antialias=True)
    bars = [(32 - width) // 2, (32 - height) // 2, 32 - width - (32 - width) // 2, 32 - height - (32 - height) // 2]
    expected = tv.normalize(tv.pad(pixels, bars, fill=0), OPENAI_MEAN, OPENAI_STD)
    assert torch.equal(hpsv2.Letterbox(32).preprocess(image), expected)


def test_antialias_is_pinned():
    """Fine black and white stripes shrink to even grey with it, and would alias to stripes without."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    grey = hpsv2.Letterbox(32, (0.0,) * 3, (1.0,) * 3).preprocess(Image.fromarray(stripes))
    assert (grey[:, 4:-4, 4:-4] - 0.5).abs().max() < 0.01


def test_nothing_is_cropped_and_bars_are_black(reward):
    """A wide picture at 32 pixels: 171 x 60 -> 32 x 11, so rows 0-9 and 21-31 are (0 - mean) / std."""
    boxed = reward.preprocess(IMAGES["wide"])
    bar = -torch.tensor(OPENAI_MEAN) / torch.tensor(OPENAI_STD)
    rows = (boxed - bar.view(3, 1, 1)).abs().amax(dim=(0, 2)) > 0.1
    assert rows.nonzero().flatten().tolist() == list(range(10, 21))


def test_a_picture_of_the_models_longest_side_gets_bars_too(reward):
    """32 x 20: the package leaves it at 32 x 20, which its image tower cannot read."""
    assert reward.preprocess(WORLD.picture((32, 20), 1)).shape == (3, 32, 32)


def test_alpha_is_dropped(reward):
    """RGBA as the package treats palettes and LA: ``convert("RGB")``."""
    assert torch.equal(reward.preprocess(IMAGES["rgba"]), reward.preprocess(IMAGES["rgba"].convert("RGB")))


@pytest.mark.parametrize("name", ["square", "exact", "wide", "tall", "large", "small"])
def test_from_pixels_is_the_published_path(reward, name):
    with torch.no_grad():
        free = reward.from_pixels(_pixels(IMAGES[name]), PROMPTS[:1])
    assert torch.equal(free, rewards.score(reward, [IMAGES[name]], PROMPTS[:1]))


def test_the_gradient_reaches_every_corner(reward):
    """A letterbox crops nothing."""
    pixels = _pixels(IMAGES["wide"]).requires_grad_(True)
    reward.from_pixels(pixels, PROMPTS[:1]).sum().backward()
    assert pixels.grad is not None
    assert all(pixels.grad[0, :, y, x].abs().sum() > 0 for y in (0, -1) for x in (0, -1))


def test_score_is_the_raw_cosine_of_open_clips_towers(reward, folder):
    """At the model's own size the letterbox is CLIP's preprocessing, and the score its cosine."""
    cosine = clipscore.load("cosine", str(folder))
    image = [IMAGES["exact"]]
    assert torch.allclose(
        rewards.score(reward, image, PROMPTS[:1]), rewards.score(cosine, image, PROMPTS[:1]), atol=1e-6
    )
    assert (reward.range, reward.encoder) == ((-1.0, 1.0), cosine.encoder)
    assert reward.preprocessing != cosine.preprocessing


def test_paired_is_the_diagonal_and_batch_equals_singles(reward):
    images = list(IMAGES.values())[: len(PROMPTS)]
    matrix = rewards.score(reward, images, PROMPTS, "matrix")
    assert (rewards.score(reward, images, PROMPTS) - matrix.diagonal()).abs().max() <= 1e-6
    singles = torch.stack([rewards.score(reward, [i], PROMPTS, "matrix")[0] for i in images])
    assert (matrix - singles).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_close(reward, folder, dtype):
    """The package computes in fp16 under autocast on a GPU; here the towers do wholly, cosines in fp32 and above."""
    half = hpsv2.load(path=str(folder), dtype=dtype)
    images = list(IMAGES.values())
    apart = rewards.score(half, images, PROMPTS, "matrix") - rewards.score(reward, images, PROMPTS, "matrix")
    assert 0 < apart.abs().max() <= {"bf16": 0.02, "fp16": 0.004}[dtype]


def test_versions_have_their_own_file_in_a_folder(folder, tmp_path):
    """`hpsv2` is 2.0, as ``hpsv2.score``; `hpsv2:2.1` takes the other file of the same folder."""
    for seed, file in enumerate(("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt")):
        torch.save({"state_dict": WORLD.open_state(seed)}, tmp_path / file)
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    old, named, new = (hpsv2.load(variant, str(tmp_path)) for variant in ("", "2.0", "2.1"))
    assert old.encoder == named.encoder != new.encoder
    assert (old.name, named.name, new.name) == ("hpsv2", "hpsv2:2.0", "hpsv2:2.1")
    assert old.origin.checkpoint_sha256 != new.origin.checkpoint_sha256
    given = hpsv2.load("2.1", str(tmp_path / "HPS_v2.1_compressed.pt"))
    assert given.origin.checkpoint_sha256 == new.origin.checkpoint_sha256


def test_a_bare_checkpoint_is_of_vit_h_14(tmp_path):
    """986 million weights; a small one is told apart by its shapes, before anything is compared."""
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(hpsv2.ARCHITECTURE))
    assert sum(p.numel() for p in model.parameters()) * 4 / 1e6 == pytest.approx(hpsv2.ABOUT.megabytes, abs=0.1)
    torch.save({"state_dict": WORLD.open_state()}, tmp_path / "HPS_v2_compressed.pt")
    with pytest.raises(InputError, match="checkpoint of another model: it lacks") as error:
        hpsv2.load(path=str(tmp_path / "HPS_v2_compressed.pt"))
    assert "\n" not in str(error.value)


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"no variant '2\.2'; did you mean '2\.[01]'"):
        hpsv2.load("2.2", str(folder))
    with pytest.raises(InputError, match=r"no HPS_v2\.1_compressed\.pt in"):
        hpsv2.load("2.1", str(tmp_path))
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    file = tmp_path / "HPS_v2_compressed.pt"
    torch.save({"state_dict": WORLD.open_state()}, file)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputError, match="damaged"):
        hpsv2.load(path=str(file))
    state = WORLD.open_state()
    state["visual.proj"][0, 0] = float("nan")
    torch.save({"state_dict": state}, file)
    with pytest.raises(InputError, match=r"visual\.proj in .* is NaN"):
        hpsv2.load(path=str(file))
    torch.save({"state_dict": torch.nn.Linear(2, 2)}, file)
    with pytest.raises(InputError, match="needs code"):
        hpsv2.load(path=str(file))
