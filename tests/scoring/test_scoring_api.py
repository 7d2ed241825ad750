"""``vf.score`` and ``Scorer``: images in memory, arrays by reward."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scoring_bench import pictures, png

import visfeedback as vf
from visfeedback.plugins import InputError
from visfeedback.rewards import score
from visfeedback.scoring import tables
from visfeedback.scoring.api import Scorer
from visfeedback.scoring.settings import ScoreSettings


def test_pictures_paths_and_bytes_with_one_prompt(toy, tmp_path: Path) -> None:
    images = pictures(3)
    (tmp_path / "a.png").write_bytes(png(images[0]))
    mixed = [images[0], tmp_path / "a.png", str(tmp_path / "a.png"), png(images[1])]
    found = vf.score(mixed, "a red circle", rewards=[toy()])
    plain = score(toy(), [images[0]] * 3 + [images[1]], ["a red circle"] * 4)
    assert np.allclose(found["toy"], plain.numpy(), atol=1e-6)
    assert found.images == ["image 0", str(tmp_path / "a.png"), str(tmp_path / "a.png"), "image 3"]
    assert len(found) == 4


def test_as_many_prompts_as_images_are_pairs_and_others_need_a_word(toy) -> None:
    images, prompts = pictures(3), ["a", "b", "c"]
    assert vf.score(images, prompts, [toy()])["toy"].shape == (3,)
    matrix = vf.score(images, prompts[:2], [toy()], pairing="matrix")
    assert np.allclose(matrix["toy"], score(toy(), images, prompts[:2], "matrix").numpy(), atol=1e-6)
    with pytest.raises(InputError, match="--pairing"):
        vf.score(images, prompts[:2], [toy()])
    with pytest.raises(InputError, match="3 images and 2 prompts"):
        vf.score(images, prompts[:2], [toy()], pairing="paired")


def test_a_folder_brings_its_prompts(folder: Path, toy) -> None:
    found = vf.score(folder, rewards=[toy()])
    assert found.prompts[:2] == ["a red circle", "two blue squares"]
    assert np.isfinite(found["toy"]).all()


def test_rows_and_table_have_the_columns_of_the_command(toy) -> None:
    found = vf.score(pictures(2), "x", rewards=[toy(), toy("b", encoder="b")])
    rows = list(found.rows())
    assert len(rows) == 4
    assert list(rows[0]) == list(tables.COLUMNS)
    assert found.table().to_pylist() == rows
    assert len(list(vf.score(pictures(2), ["x", "y", "z"], [toy()], pairing="matrix").rows())) == 6


def test_it_says_what_it_is(toy) -> None:
    text = repr(vf.score(pictures(3), "x", rewards=[toy(), toy("other", encoder="b")]))
    assert text.startswith("3 scores\n  toy    mean ")
    assert "other  mean" in text
    with pytest.raises(KeyError, match="there are toy"):
        vf.score(pictures(1), "x", rewards=[toy()])["hpsv2"]


def test_bad_images_are_not_a_number(toy, tmp_path: Path) -> None:
    found = vf.score([pictures(1)[0], b"", tmp_path / "gone.png"], "x", rewards=[toy()])
    assert np.isfinite(found["toy"]).tolist() == [True, False, False]
    assert [one["image"] for one in found.failed] == ["image 1", str(tmp_path / "gone.png")]
    assert len(list(found.rows())) == 1
    assert "2 failed" in repr(found)


@pytest.mark.parametrize(
    ("images", "prompts", "said"),
    [([], "x", "no images"), ([3], "x", "image 0 is a int"), (["a.png"], None, "no image has a prompt")],
)
def test_what_cannot_be_scored(toy, images, prompts, said: str) -> None:
    with pytest.raises(InputError, match=said):
        vf.score(images, prompts, rewards=[toy()])


def test_a_scorer_encodes_an_image_once_in_its_life(toy) -> None:
    """Nine images, two of them alike, three calls: eight encodings."""
    reward = toy()
    scorer = Scorer([reward])
    images = [*pictures(8), pictures(1)[0]]
    first = scorer.score(images, "a")
    second = scorer.score(images, ["b", "c"], pairing="matrix")
    assert sum(reward.batches) == 8
    assert reward.prompts == ["a", "b", "c"]
    assert np.allclose(second["toy"], score(toy(), images, ["b", "c"], "matrix").numpy(), atol=1e-6)
    assert first["toy"].shape == (9,)


def test_pictures_that_differ_in_palette_or_mode_are_different(toy) -> None:
    grey = Image.new("L", (4, 4), 100)
    one, two = (Image.new("P", (4, 4), 0) for _ in range(2))
    one.putpalette([255, 0, 0])
    two.putpalette([0, 0, 255])
    reward = toy()
    found = vf.score([grey, grey.convert("RGB"), one, two, one.copy()], "x", rewards=[reward])
    assert sum(reward.batches) == 4
    assert found["toy"][2] == found["toy"][4] != found["toy"][3]


def test_an_opened_picture_is_what_its_file_is(toy, tmp_path: Path) -> None:
    """16 bits, damage, floating-point numbers and a size beyond the limit, opened by the caller or not."""
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    whole = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    Image.new("RGB", (300, 200)).save(tmp_path / "large.png")
    files = [tmp_path / name for name in ("deep.png", "torn.png", "float.tif", "large.png")]
    settings = ScoreSettings(max_megapixels=0.05)
    by_name = vf.score(files, "x", [toy()], settings=settings)
    images = [Image.open(BytesIO(file.read_bytes())) for file in files]
    opened = vf.score(images, "x", [toy()], settings=settings)
    assert np.allclose(by_name["toy"], opened["toy"], equal_nan=True)
    assert np.isfinite(opened["toy"]).tolist() == [True, False, False, False]
    assert [one["error"] for one in by_name.failed] == [one["error"] for one in opened.failed]


def test_one_picture_is_no_list_and_a_name_holds_no_zero_byte(toy) -> None:
    for image in (pictures(1)[0], b"bytes"):
        with pytest.raises(InputError, match=r"write \[image\]"):
            vf.score(image, "x", [toy()])
    (failed,) = vf.score(["a\0.png"], "x", [toy()]).failed
    assert "zero byte" in failed["error"]


def test_two_rewards_of_one_name_are_told_apart(toy) -> None:
    one, other = toy("mix", encoder="a"), toy("mix", encoder="b")
    other.origin = other.origin.model_copy(update={"model": "toy:other", "checkpoint_sha256": "0" * 64})
    found = vf.score(pictures(2), "x", [one, other])
    assert found.rewards == ["mix (toy:mix)", "mix (toy:other)"]
    assert found["mix (toy:other)"].shape == (2,)
    with pytest.raises(KeyError, match="there are mix"):
        found["mix"]
