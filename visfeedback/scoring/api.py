"""Scoring from Python: ``vf.score(images, prompts, rewards=[...])``, for what fits in memory.

A ``Scorer`` keeps its rewards and the embeddings of the images it has seen, so that a second call with other prompts
needs no image encoder. May import: types, rewards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visfeedback import rewards as room
from visfeedback.plugins import InputError
from visfeedback.scoring.decode import checked
from visfeedback.scoring.engine import Engine, pick_device
from visfeedback.scoring.features import InMemory
from visfeedback.scoring.feed import in_order
from visfeedback.scoring.pairing import columns, resolve
from visfeedback.scoring.scores import Scores
from visfeedback.scoring.settings import Pairing, ScoreSettings
from visfeedback.scoring.sources import Item, open_source
from visfeedback.scoring.work import Held, Memory, Task, Unit, identities
from visfeedback.types.protocols import Reward

Images = str | PathLike[str] | Sequence[Any]
KEPT_MIB = 2048.0


class Scorer:
    """Rewards that are loaded once and images that are encoded once, however often ``score`` is called."""

    def __init__(
        self, rewards: Sequence[str | Reward], device: str = "auto", dtype: room.Dtype = "fp32",
        settings: ScoreSettings | None = None, keep_mib: float = KEPT_MIB,
    ) -> None:  # fmt: skip
        """``rewards``: names such as ``"hpsv2:2.1@weights.pt"``, or loaded rewards. ``keep_mib``: for embeddings, each
        encoder; 0 keeps none."""
        device = pick_device(device)
        self.rewards = [room.load(one, device, dtype) if isinstance(one, str) else one for one in rewards]
        self.settings = settings or ScoreSettings()
        self._about = identities(self.rewards)
        self._kept: dict[tuple[str, str, str], InMemory] = {}
        self._keep_mib = keep_mib
        self._engine = Engine(self.rewards, self.settings, device, self._remember)

    def _remember(self, reward: Reward) -> InMemory | None:
        if reward.encoder == "pixels" or self._keep_mib <= 0:
            return None
        return InMemory(self._keep_mib * 2**20)

    def score(
        self, images: Images, prompts: str | Sequence[str] | None = None, pairing: Pairing | None = None
    ) -> Scores:
        """``images``: a folder, samples.jsonl or parquet, or a sequence of PIL images, paths and bytes.

        ``prompts``: one for all, one for each image, or (``pairing="matrix"``) all against all; None where the images
        bring their own, or no reward reads any. Single images that cannot be scored are in ``Scores.failed``.
        Raises InputError when there are no images, or prompts and images do not fit.
        """
        given = [prompts] if isinstance(prompts, str) else list(prompts or ())
        items = _items(images, self.settings)
        how = _pairing(pairing, given, len(items))
        texts = columns([item for item, _ in items], given, how)
        read = [read for _, read in items]
        wanted = _prompts([item for item, _ in items], given, how)
        self._check_prompts(wanted, texts)
        return self._run([item for item, _ in items], read, wanted, texts)

    def _check_prompts(self, wanted: list[str | None], texts: tuple[str, ...] | None) -> None:
        readers = [reward.name for reward in self.rewards if reward.reads_prompt]
        if readers and not texts and not any(wanted):
            raise InputError(f"no image has a prompt, and {readers[0]} needs one; give prompts")

    def _run(
        self, items: list[Item], read: list[Callable[[], Any]], wanted: list[str | None], texts: tuple[str, ...] | None
    ) -> Scores:
        with ThreadPoolExecutor(self.settings.threads) as pool:
            digest = partial(_digest, max_megapixels=self.settings.max_megapixels)
            digests = list(in_order(pool, digest, read, 2 * self.settings.threads))
        prompts: dict[str, list[str | None]] = {}
        for (sha256, _), prompt in zip(digests, wanted, strict=True):
            own = prompts.setdefault(sha256, [])
            if sha256 and prompt not in own:
                own.append(prompt)
        prompts.pop("", None)
        first = {sha256: n for n, (sha256, _) in reversed(list(enumerate(digests)))}
        units = [Unit(u, sha256, "", texts or tuple(own)) for u, (sha256, own) in enumerate(prompts.items())]
        width = max((len(unit.prompts) for unit in units), default=1)
        memory = Memory([np.full((len(units), width), np.nan, np.float32) for _ in self.rewards])
        every = {unit.number: {r: np.ones(len(unit.prompts), bool) for r in range(len(self.rewards))} for unit in units}
        tasks = (Task(unit, every[unit.number], read[first[unit.sha256]]) for unit in units)
        self._engine.run([Held(memory, tasks)], _nowhere)
        return self._gather(items, wanted, texts, digests, {unit.sha256: unit for unit in units}, memory)

    def _gather(
        self, items: list[Item], wanted: list[str | None], texts: tuple[str, ...] | None,
        digests: list[tuple[str, str]], units: dict[str, Unit], memory: Memory,
    ) -> Scores:  # fmt: skip
        """Scores of units -> scores of images."""
        shape = (len(items), len(texts)) if texts else (len(items),)
        values = [np.full(shape, np.nan, np.float32) for _ in self.rewards]
        failed: list[dict[str, Any]] = []
        for n, (item, (sha256, error)) in enumerate(zip(items, digests, strict=True)):
            if error:
                failed.append({"image": item.image, "prompt": wanted[n], "reward": None, "error": error})
                continue
            unit = units[sha256]
            for p in range(len(texts)) if texts else [unit.prompts.index(wanted[n])]:
                for r, about in enumerate(self._about):
                    values[r][(n, p) if texts else n] = memory.scores[r][unit.number, p]
                    if (unit.number, r, p) in memory.errors:
                        failed.append({"image": item.image, "prompt": unit.prompts[p], "reward": about.reward,
                                       "error": memory.errors[unit.number, r, p]})  # fmt: skip
        names = [item.image for item in items]
        return Scores(names, list(texts or wanted), [sha256 for sha256, _ in digests], values, self._about, failed)


def score(
    images: Images, prompts: str | Sequence[str] | None = None, rewards: Sequence[str | Reward] | str = (),
    pairing: Pairing | None = None, device: str = "auto", dtype: room.Dtype = "fp32",
    settings: ScoreSettings | None = None,
) -> Scores:  # fmt: skip
    """Score images with several rewards in one pass; see ``Scorer.score`` for what may be given.

    >>> scores = vf.score(["a.png", "b.png"], "a red circle", rewards=["shapes_clip", "shapes_verifier"])
    >>> scores["shapes_clip"]                     # (2,)
    """
    names = [rewards] if isinstance(rewards, str) else rewards
    return Scorer(names, device, dtype, settings, keep_mib=0).score(images, prompts, pairing)


# images from wherever they are


def _items(images: Images, settings: ScoreSettings) -> list[tuple[Item, Callable[[], Any]]]:
    """Items and how to read each."""
    if isinstance(images, str | PathLike):
        source = open_source(str(images), settings)
        found = [(item, _reader(source.fetch, item)) for item in source.items()]
    elif isinstance(images, Image.Image | bytes):
        raise InputError("one image; write [image], a list")
    else:
        found = [_item(number, image) for number, image in enumerate(images)]
    if not found:
        raise InputError("no images; give a folder, a list, or images")
    return found


def _reader(fetch: Callable[[str], Callable[[], Any]], item: Item) -> Callable[[], Any]:
    def read() -> Any:
        if item.error:
            raise InputError(item.error)
        return fetch(item.location)()

    return read


def _item(number: int, image: Any) -> tuple[Item, Callable[[], Any]]:
    if isinstance(image, str | PathLike):
        return Item(str(image), None, str(number)), Path(image).read_bytes
    if isinstance(image, bytes | Image.Image):
        return Item(f"image {number}", None, str(number)), lambda: image
    raise InputError(f"image {number} is a {type(image).__name__}; expected a PIL image, a path or bytes")


def _digest(read: Callable[[], Any], max_megapixels: float) -> tuple[str, str]:
    """sha256 of the content (of a PIL image: mode, size, palette and pixels), or why there is none."""
    try:
        content = read()
        if isinstance(content, Image.Image):
            return _pixels_digest(checked(content, max_megapixels)[0]), ""
    except InputError as error:
        return "", str(error)
    except OSError as error:
        return "", f"{error.filename}: {error.strerror}"
    except ValueError:
        return "", "a file's name cannot hold a zero byte"
    return hashlib.sha256(content).hexdigest(), ""


def _pixels_digest(image: Image.Image) -> str:
    palette = bytes(image.getpalette() or ()) if image.mode in ("P", "PA") else b""
    head = f"{image.mode} {image.size} {image.info.get('transparency')}".encode()
    return hashlib.sha256(head + palette + image.tobytes()).hexdigest()


def _pairing(pairing: Pairing | None, prompts: list[str], images: int) -> Pairing:
    """As many prompts as images are one for each, when nobody says otherwise."""
    if pairing is None and len(prompts) > 1 and len(prompts) == images:
        return "paired"
    return resolve(pairing, prompts)


def _prompts(items: list[Item], given: list[str], how: Pairing) -> list[str | None]:
    if how == "one":
        return [given[0]] * len(items)
    if how == "paired" and given and len(given) != len(items):
        raise InputError(f"{len(items)} images and {len(given)} prompts; expected one prompt for each image")
    if how == "matrix":
        return [None] * len(items)
    return list(given) if given else [item.prompt for item in items]


def _nowhere(location: str) -> Callable[[], Any]:
    raise AssertionError("every task in memory brings its own image")
