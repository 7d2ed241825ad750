"""Text match: the arithmetic by hand, and real recognition of rendered text, offline."""

from __future__ import annotations

import math
import socket
import sys

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import ocr
from visfeedback.types.records import Origin


def _sign(*lines: str, size: tuple[int, int] = (256, 160)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    for row, line in enumerate(lines):
        ImageDraw.Draw(image).text((16, 20 + 60 * row), line, fill="black", font=ImageFont.load_default(32))
    return image


@pytest.fixture(scope="module")
def reward():
    return rewards.load("ocr")


@pytest.fixture(scope="module")
def features(reward):
    """Signs that say OPEN NOW (two lines), HELLO, and nothing: (3, 4096)."""
    images = [_sign("OPEN", "NOW"), _sign("HELLO"), _sign()]
    return reward.encode_images(torch.stack([reward.preprocess(image) for image in images]))


def test_reads_rendered_text(features):
    assert [ocr.unpack(row) for row in features] == ["OPENNOW", "HELLO", ""]
    assert features.shape == (3, ocr.TEXT_BYTES)
    assert features.dtype == torch.uint8


def test_scores_by_hand(reward, features):
    """
    "Open Now" is in OPENNOW without spaces and case: 1. "HELP" against HELLO: two edits of four letters, 1 - 2/4.
    "HELLO" against OPENNOW: more edits than letters, cut at 5: 0; against an empty image: five of five, 0.
    """
    texts = reward.encode_texts(['a sign "Open Now" in the rain', 'the word "HELP", red', 'he says "HELLO" and "BYE"'])
    assert texts == ["opennow", "help", "hello"]
    matrix = reward.combine(features, texts, "matrix")
    assert matrix[0, 0] == 1
    assert matrix[1, 1] == 0.5
    assert matrix[1, 2] == 1
    assert matrix[0, 2] == 0
    assert matrix[2].tolist() == [0, 0, 0]
    assert torch.equal(reward.combine(features, texts), matrix.diagonal())
    assert reward.failures == {}


def test_prompts_without_a_target_fail_with_a_reason(reward, features):
    """Not 0 (the published code's IndexError became that), and not the end of the run."""
    texts = reward.encode_texts(["no quotes", 'one " quote', 'empty "" quotes'])
    scores = reward.combine(features, texts)
    assert scores.isnan().all()
    assert list(reward.failures) == [(0, 0), (1, 1), (2, 2)]
    assert all("double quotes" in why and "\n" not in why for why in reward.failures.values())
    assert reward.unfit("no quotes") == reward.unfit('empty "" quotes') == reward.failures[0, 0]
    assert reward.unfit('a sign "OPEN"') == ""
    matrix = reward.combine(features, reward.encode_texts(['"HELLO"', "none"]), "matrix")
    assert matrix[:, 0].isfinite().all()
    assert matrix[:, 1].isnan().all()
    assert list(reward.failures) == [(0, 1), (1, 1), (2, 1)]
    reward.combine(features[:1], ["open"])
    assert reward.failures == {}


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_levenshtein_of_the_textbook(a, b, distance):
    assert ocr.levenshtein(a, b) == ocr.levenshtein(b, a) == distance


def test_match_is_cut_at_zero():
    """A page of text around a near miss costs more edits than the target has letters."""
    assert ocr.match("x" * 100 + "helo", "hello") == 0
    assert ocr.match("helo", "hello") == pytest.approx(0.8)
    assert ocr.match("", "a") == 0


@pytest.mark.parametrize("text", ["", "plain", "Grüße 你好 🎈", "x" * 5000, "🎈" * 1025])
def test_text_travels_as_bytes(text):
    """4,096 bytes; a letter that does not fit whole is left out (a balloon has four bytes: 1,024 fit)."""
    assert ocr.unpack(ocr.pack(text)) == text[: 4096 if text.startswith("x") else 1024]


def test_batch_equals_singles(reward, features):
    alone = [reward.encode_images(reward.preprocess(image)[None]) for image in (_sign("OPEN", "NOW"), _sign("HELLO"))]
    assert torch.equal(torch.cat(alone), features[:2])


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "CMYK", "I;16", "1"])
def test_every_mode_is_its_rgb(reward, mode):
    image = Image.new("I;16", (20, 30), 400) if mode == "I;16" else _sign("HELLO").convert(mode)
    assert torch.equal(reward.preprocess(image), reward.preprocess(image.convert("RGB")))


def test_strips_are_widened_before_they_are_read():
    """RapidOCR makes the short side 736 pixels long: of 500 x 1 it would make 368,000 x 736. 500 / 8 = 62.5."""
    seen: list[tuple[int, ...]] = []
    reward = ocr.Ocr(lambda array: seen.append(array.shape), Origin(model="rapidocr"))
    for size in ((500, 1), (1, 500), (80, 10), (1, 1)):
        reward.encode_images(reward.preprocess(Image.new("RGB", size))[None])
    assert seen == [(63, 500, 3), (500, 63, 3), (10, 80, 3), (1, 1, 3)]


def test_a_single_pixel_is_read(reward):
    assert rewards.score(reward, [Image.new("RGB", (1, 1))], ['"a"']).tolist() == [0]


def test_works_without_a_network_connection(monkeypatch):
    def refuse(*args):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert rewards.score(rewards.load("ocr"), [_sign("HELLO")], ['"hello"']).tolist() == [1]


def test_what_it_says_of_itself(reward):
    assert reward.origin.model == "rapidocr"
    assert len(reward.origin.checkpoint_sha256) == 64
    assert reward.origin.checkpoint_sha256[:16] in reward.encoder
    assert not math.isinf(reward.range[1])


def test_missing_packages_and_variants(monkeypatch):
    with pytest.raises(InputError, match="no variants"):
        rewards.load("ocr:large")
    for package in ("rapidocr", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=rf"needs {package}; type pip install 'visfeedback\[ocr\]'"):
                rewards.load("ocr")
