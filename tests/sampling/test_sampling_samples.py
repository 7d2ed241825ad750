"""Reading sample lists back."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from visfeedback.plugins import InputError
from visfeedback.sampling.samples import open_image, read_samples
from visfeedback.types.files import append_jsonl
from visfeedback.types.records import Sample

SAMPLE = Sample(id="0", prompt_id="p", prompt="a cat", path="a.png", width=8, height=8)


def test_images_are_found_beside_the_list(tmp_path: Path) -> None:
    append_jsonl(tmp_path / "samples.jsonl", [SAMPLE])
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    [sample] = read_samples(tmp_path)
    assert open_image(sample, tmp_path).getpixel((0, 0)) == (7, 7, 7)


def test_missing_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="visfeedback generate"):
        read_samples(tmp_path)
    (tmp_path / "samples.jsonl").write_text("")
    with pytest.raises(InputError, match="no samples"):
        read_samples(tmp_path)
    with pytest.raises(InputError, match="no image"):
        open_image(SAMPLE, tmp_path)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"text", b""):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputError, match="damaged") as caught:
            open_image(SAMPLE, tmp_path)
        assert "\n" not in str(caught.value)
