"""Images: bytes as they came, named by their hash; damaged and oversized ones are refused by name."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from visfeedback import store
from visfeedback.plugins import InputError
from visfeedback.store.images import MAX_PIXELS, BadImage, ImageFolder, inspect
from visfeedback.types.records import Sample, image_id

Make = Callable[..., list[Sample]]


def test_the_file_name_is_the_hash_of_the_bytes(opened: store.Store, make_samples: Make, tmp_path: Path) -> None:
    (sample,) = make_samples(prompts=1, each=1)
    opened.add_samples([sample], tmp_path / "images")
    path = opened.image_path(sample.id)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path == tmp_path / "prefs.images" / sha[:2] / f"{sha}.png"


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp")])
def test_bytes_are_kept_whatever_the_format(opened: store.Store, tmp_path: Path, kind: str, suffix: str) -> None:
    """The name of the file does not matter, its content does; the sample id is that of the decoded pixels."""
    Image.linear_gradient("L").resize((32, 16)).convert("RGB").save(tmp_path / "image.bin", format=kind)
    data = (tmp_path / "image.bin").read_bytes()
    pixels = Image.open(tmp_path / "image.bin").convert("RGB").tobytes()
    sample = Sample(id=image_id(32, 16, pixels), prompt_id="p", prompt="x", path="image.bin", width=32, height=16)
    opened.add_samples([sample], tmp_path)
    assert opened.image_bytes(sample.id) == data
    assert opened.image_path(sample.id).suffix == suffix


def test_a_truncated_image_names_its_file_and_leaves_nothing(
    opened: store.Store, make_samples: Make, tmp_path: Path
) -> None:
    """Noise, because a PNG of one colour may decode although its tail is missing."""
    folder = tmp_path / "images"
    samples = make_samples(prompts=1, each=2)
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    noise.save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-400])
    bad = samples[0].model_copy(update={"id": image_id(64, 64, noise.tobytes()), "path": "cut.png"})
    with pytest.raises(BadImage, match=r"cut\.png is damaged"):
        opened.add_samples([*samples, bad], folder)
    assert list(opened.samples()) == []


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", "is not an image"), (b"hello", "is not an image"), (b"\x89PNG\r\n\x1a\n", "is not an image")],
)
def test_what_is_no_image(content: bytes, line: str) -> None:
    with pytest.raises(BadImage, match=f"x.png {line}"):
        inspect(content, "x.png")


def test_other_formats_say_what_to_do(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.gif")
    with pytest.raises(BadImage, match="is GIF; images are kept as PNG, JPEG or WebP"):
        inspect((tmp_path / "x.gif").read_bytes(), "x.gif")


@pytest.mark.parametrize("side", [8001, 10_000, 60_000])
def test_decompression_bombs_are_refused_from_the_header(side: int) -> None:
    """A PNG of a few bytes that claims side x side pixels; 8001^2 is just over our limit, 60,000^2 far over PIL's."""
    assert side * side > MAX_PIXELS
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    with pytest.raises(BadImage, match="million pixels"):
        inspect(png, "bomb.png")


def test_an_image_that_was_changed_since_is_not_its_sample(
    opened: store.Store, make_samples: Make, tmp_path: Path
) -> None:
    first, second = make_samples(prompts=1, each=2)
    swapped = first.model_copy(update={"path": second.path})
    with pytest.raises(BadImage, match="is not the image of its sample"):
        opened.add_samples([swapped], tmp_path / "images")


def test_missing_files_and_folders_are_named(opened: store.Store, make_samples: Make, tmp_path: Path) -> None:
    (sample,) = make_samples(prompts=1, each=1)
    with pytest.raises(BadImage, match=r"no image .*nowhere"):
        opened.add_samples([sample], tmp_path / "nowhere")
    with pytest.raises(BadImage, match="is a folder"):
        opened.add_samples([sample.model_copy(update={"path": "."})], tmp_path)


def test_a_torn_file_is_replaced_and_a_lost_one_comes_back(
    filled: store.Store, make_samples: Make, tmp_path: Path
) -> None:
    """Adding the samples again mends the folder."""
    sample = make_samples()[0]
    path = filled.image_path(sample.id)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match="no image"):
        filled.image_bytes(sample.id)
    filled.add_samples([sample], tmp_path / "images")
    assert path.read_bytes() == data
    path.write_bytes(data[:10])
    ImageFolder(filled.image_folder.root).put(data, path.stem, path.suffix)
    assert path.read_bytes() == data


def test_a_full_disk_is_one_line(
    opened: store.Store, make_samples: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> Path:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("visfeedback.store.images.write_atomic", full)
    with pytest.raises(InputError, match="No space left on device"):
        opened.add_samples(make_samples(prompts=1, each=1), tmp_path / "images")
    assert list(opened.samples()) == []
