"""A tiny instance of every reward: the real classes with random weights, written where ``rewards.load`` finds them.

``MAKERS`` has a function for each file of ``visfeedback/rewards``: folder -> the reference to load. A reward without
one fails the contract tests.
"""

from __future__ import annotations

import hashlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from chat_server import choice, said

FIXTURES = Path(__file__).parents[1] / "rewards" / "fixtures"


def world(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(FIXTURES / f"{name}.py")))


def _aesthetic(folder: Path) -> str:
    import torch

    from visfeedback.rewards import aesthetic

    clip = world("clip_world")
    clip.write_transformers(folder / "clip")
    torch.save(clip.head("v2"), folder / aesthetic.VARIANTS["v2"].file)
    return f"aesthetic@{folder}"


def _clipscore(folder: Path) -> str:
    return f"clipscore@{world('clip_world').write_transformers(folder / 'clip')}"


def _pickscore(folder: Path) -> str:
    return f"pickscore@{world('clip_world').write_transformers(folder / 'clip', seed=1)}"


def _hpsv2(folder: Path) -> str:
    return f"hpsv2@{world('clip_world').write_open_clip(folder / 'clip')}"


def _imagereward(folder: Path) -> str:
    return f"imagereward@{world('blip_world').write_folder(folder / 'blip')}"


def _itercomp(folder: Path) -> str:
    blip = world("blip_world")
    for seed, name in enumerate(("attribute.pt", "spatial.pt", "non_spatial.pt")):
        blip.write_folder(folder, seed, name)
    return f"itercomp@{folder}"


def _hpsv3(folder: Path) -> str:
    from tiny_hpsv3 import write_tiny_hpsv3

    return f"hpsv3@{write_tiny_hpsv3(folder / 'hpsv3')}"


def _vqascore(folder: Path) -> str:
    from tiny_vlm import write_tiny_vlm

    return f"vqascore@local:{write_tiny_vlm(folder / 'vlm')}"


def _mix(folder: Path) -> str:
    parts = [(_clipscore(folder / "one"), 0.5), ("compressibility", 0.01)]
    lines = [f'[[parts]]\nreward = "{reference}"\nweight = {weight}\n' for reference, weight in parts]
    (folder / "mix.toml").write_text("\n".join(lines))
    return f"mix@{folder / 'mix.toml'}"


def _fit(folder: Path) -> str:
    from PIL import Image

    from visfeedback.rewards import fit

    base, colours = _clipscore(folder / "base"), ("red", "green", "blue", "white")
    (folder / "pictures").mkdir()
    paths = [folder / "pictures" / f"{colour}.png" for colour in colours]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (32, 32), colour).save(path)
    pairs = [fit.Comparison(f"prompt {n}", paths[n % 4], paths[(n + 1) % 4], 1.0) for n in range(20)]
    fit.fit(pairs, fit.Settings(base=base, epochs=3), folder / "fitted")
    return f"fit@{folder / 'fitted'}"


def _plain(reference: str) -> Callable[[Path], str]:
    return lambda folder: reference


MAKERS: dict[str, Callable[[Path], str]] = {
    "aesthetic": _aesthetic, "clipscore": _clipscore, "compressibility": _plain("compressibility"), "fit": _fit,
    "hpsv2": _hpsv2, "hpsv3": _hpsv3, "imagereward": _imagereward, "itercomp": _itercomp, "mix": _mix,
    "ocr": _plain("ocr"), "pickscore": _pickscore, "safety": _plain("safety"), "shapes_clip": _plain("shapes_clip"),
    "shapes_verifier": _plain("shapes_verifier"), "vqascore": _vqascore,
}  # fmt: skip
"""Reward -> what writes its weights into a folder and says how to load it."""
ASKED: dict[str, str] = {"unifiedreward": "unifiedreward@tiny@"}
"""Rewards that ask an endpoint: what stands before its address."""


def rating(payload: dict[str, Any]) -> dict[str, Any]:
    """An endpoint's rating, 1 to 5, that follows from picture and question."""
    pictures = [p["image_url"]["url"] for turn in payload["messages"] if not isinstance(turn["content"], str)
                for p in turn["content"] if p["type"] == "image_url"]  # fmt: skip
    digest = hashlib.sha256(json.dumps([pictures, said(payload)]).encode()).digest()
    return choice(f"Final Score: {1 + digest[0] % 401 / 100:.2f}")
