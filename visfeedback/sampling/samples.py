"""Reading samples back: the list, and the images it points to. Paths are relative to the folder of the list."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from visfeedback.plugins import InputError
from visfeedback.types.files import read_jsonl
from visfeedback.types.records import Sample

SAMPLES = "samples.jsonl"


def read_samples(src: str | Path) -> list[Sample]:
    """Samples of a folder that ``generate`` wrote, or of its samples.jsonl. Raises InputError when there are none."""
    file = samples_file(src)
    if not file.is_file():
        raise InputError(f"no {file}; expected a folder that `visfeedback generate --out` wrote, or its {SAMPLES}")
    samples = list(read_jsonl(file, Sample))
    if not samples:
        raise InputError(f"{file} has no samples")
    return samples


def samples_file(src: str | Path) -> Path:
    """The list that ``src``, a folder or the list itself, means."""
    src = Path(src)
    return src if src.suffix == ".jsonl" else src / SAMPLES


def open_image(sample: Sample, root: Path) -> Image.Image:
    """The RGB image of a sample whose list is in ``root``. Raises InputError when it is missing or damaged."""
    path = Path(root) / sample.path
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"no image {path}; {SAMPLES} lists it") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image {path} is damaged: {error}") from None
