"""A weighted sum of rewards as one reward, with their disagreement as its uncertainty.

``mix@FILE.toml`` reads ``pessimism`` (0 when left out) and a table ``[[parts]]`` for each reward (fields of ``Part``):

    [[parts]]
    reward = "pickscore"
    weight = 0.7
    normalise = "zscore"
    mean = 21.3
    std = 1.2

A path after ``@`` in ``reward`` may be relative to FILE. ``mix:agreement@FILE.toml`` scores how much the parts agree:
minus their standard deviation after normalisation, 0 at most, whatever the pessimism; asked for together with the mix
it gives every picture its uncertainty, from the same features. The arithmetic is in ``_mixing.py``; its names are also
here, for whoever has tensors of scores. Left out: normalisation by the other pictures of a batch (``rank``,
``group_spread``), because a reward's score must not depend on who else is scored. May import: types.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from visfeedback.plugins import InputError, nearest
from visfeedback.rewards import _mix_file, _packed
from visfeedback.rewards import load as load_reward
from visfeedback.rewards._agreement import Agreement
from visfeedback.rewards._answered import Failures, answered
from visfeedback.rewards._mix_file import Part, Recipe
from visfeedback.rewards._mixing import Running, Spread, combine, group_spread, normalise, rank, uncertainty
from visfeedback.types.protocols import Reward
from visfeedback.types.records import About, Origin, text_id

__all__ = [
    "Agreement", "Mix", "Part", "Running", "Spread", "combine", "group_spread", "load", "normalise", "rank",
    "uncertainty",
]  # fmt: skip

VARIANTS = ("sum", "agreement")
COARSEST_FIRST = ("bf16", "fp16", "fp32", "")
"""Of parts that differ the mix is as exact as the least exact one; endpoints compute nothing here."""
ABOUT = About(
    measures="a weighted sum of other rewards, less where they disagree if wanted; agreement: minus their disagreement",
    licence="Apache-2.0",
    variants=VARIANTS,
)
USAGE = "mix@FILE.toml"
"""It has no weights of its own to fall back on."""
RANGE = "as its parts; agreement any to 0"


class _Text(NamedTuple):
    """One prompt as one part encodes it."""

    value: Any
    is_row: bool  # of a tensor over all prompts, rather than an item of a list


class Mix:
    """Reward protocol around several rewards; a DifferentiableReward when all of them are.

    What the parts preprocess and encode is packed into one tensor (``_packed.py``), equal work done once.
    ``failures``: pairs of the last ``combine`` that some part has no score for, and why.
    """

    name = "mix"

    def __init__(self, parts: Sequence[tuple[Reward, Part]], pessimism: float = 0.0, model: str = "mix") -> None:
        self.recipe = Recipe(parts=tuple(part for _, part in parts), pessimism=pessimism)
        self.rewards = [reward for reward, _ in parts]
        self.differentiable = all(reward.differentiable for reward in self.rewards)
        self.reads_prompt = any(reward.reads_prompt for reward in self.rewards)
        self._eyes = {reward.preprocessing: reward for reward in reversed(self.rewards)}
        self._towers = {_tower(reward): reward for reward in reversed(self.rewards)}
        self.preprocessing = f"mix-{text_id(*self._eyes)}"
        self.encoder = f"mix-{text_id(*self._towers)}"
        self.failures: Failures = {}
        self.pairs_at_once = min((n for r in self.rewards if (n := getattr(r, "pairs_at_once", 0))), default=0)
        self.origin = _origin(self.rewards, self.recipe, model)

    @property
    def range(self) -> tuple[float, float]:
        """Bounds that follow from the parts'."""
        return self.recipe.bounds([reward.range for reward in self.rewards])

    def preprocess(self, image: Image.Image) -> Tensor:
        """Every different preprocessing of the parts, packed -> (1, 1, K); K depends on the image where theirs do."""
        return _packed.pack([eye.preprocess(image)[None] for eye in self._eyes.values()])[None]

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Preprocessed (N, 1, 1, K) -> features of every different image tower, packed (N, K')."""
        order: list[int] = []
        done: list[Tensor] = []
        for rows, seen in _packed.unpack(pixels.flatten(1)):
            views = dict(zip(self._eyes, seen, strict=True))
            features = [tower.encode_images(views[tower.preprocessing]) for tower in self._towers.values()]
            done.append(_packed.pack(_together(features)))
            order += rows
        return _packed.stack(done)[torch.tensor(order).argsort()]

    def encode_texts(self, prompts: Sequence[str]) -> list[list[_Text]]:
        """For each prompt what every part makes of it."""
        encoded = [reward.encode_texts(prompts) for reward in self.rewards]
        return [[_Text(part[row], isinstance(part, Tensor)) for part in encoded] for row in range(len(prompts))]

    def scores(
        self, images: Tensor, texts: list[list[_Text]], pairing: Literal["paired", "matrix"] = "paired"
    ) -> Tensor:
        """The parts' own scores in native units: (B, R) when paired, (N images, P prompts, R) for the matrix.

        NaN where a part has none. Raises InputError when a part cannot work at all: an endpoint that is not there.
        """
        shape = (
            (len(images), len(self.rewards)) if pairing == "paired" else (len(images), len(texts), len(self.rewards))
        )
        found = torch.empty(shape)
        self.failures = {}
        for rows, features in _packed.unpack(images):
            towers = dict(zip(self._towers, features, strict=True))
            own = [texts[row] for row in rows] if pairing == "paired" else texts
            parts: list[Tensor] = []
            for r, reward in enumerate(self.rewards):
                scores, failed = answered(reward, towers[_tower(reward)], _column(own, r), pairing)
                parts.append(scores)
                for (row, column), why in failed.items():
                    place = rows[row], rows[column] if pairing == "paired" else column
                    self.failures.setdefault(place, f"{reward.name}: {why}")
            found[rows] = torch.stack(parts, dim=-1)
        return found

    def combine(
        self, images: Tensor, texts: list[list[_Text]], pairing: Literal["paired", "matrix"] = "paired"
    ) -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix."""
        return self.mixed(self.scores(images, texts, pairing))

    def uncertainty(
        self, images: Tensor, texts: list[list[_Text]], pairing: Literal["paired", "matrix"] = "paired"
    ) -> Tensor:
        """Disagreement of the parts after normalisation, in the shape of ``combine``; comparable between prompts."""
        return self.disagreement(self.normalised(self.scores(images, texts, pairing)))

    def disagreement(self, normalised: Tensor) -> Tensor:
        """Normalised scores of the parts (..., R) -> (...)."""
        return uncertainty(normalised, self._weights.to(normalised.device))

    def mixed(self, scores: Tensor) -> Tensor:
        """Native scores of the parts (..., R) -> the mix (...)."""
        return combine(self.normalised(scores), self._weights.to(scores.device), self.recipe.pessimism)

    def normalised(self, scores: Tensor) -> Tensor:
        """Native scores of the parts (..., R) -> (..., R)."""
        spread = Spread(*(self._numbers(name).to(scores.device) for name in ("mean", "std", "low", "high")))
        return normalise(scores, [part.normalise for part in self.recipe.parts], spread)

    @property
    def _weights(self) -> Tensor:
        return torch.tensor([part.weight for part in self.recipe.parts])

    def _numbers(self, name: str) -> Tensor:
        return torch.tensor([getattr(part, name) or 0.0 for part in self.recipe.parts])

    def fitted(self, seen: Running, how: Literal["zscore", "minmax"] = "zscore") -> Mix:
        """The same mix, every part normalised by the spread of scores that were seen, for example
        ``Running.of(mix.scores(...))`` over the pictures of several prompts; a part that never varied is refused.
        """
        parts: list[tuple[Reward, Part]] = []
        for r, (reward, part) in enumerate(zip(self.rewards, self.recipe.parts, strict=True)):
            numbers = {name: float(getattr(seen.spread, name)[r]) for name in ("mean", "std", "low", "high")}
            if numbers["low"] == numbers["high"]:
                raise InputError(
                    f"{part.reward} gave {numbers['low']:g} to every picture seen; show it others or leave it"
                )
            parts.append((reward, part.model_copy(update={"normalise": how, **numbers})))
        return Mix(parts, self.recipe.pessimism, self.origin.model)

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) with a gradient; as far from the published scores as the parts' own."""
        return self.mixed(self._native(pixels, prompts))

    def parts_from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, R) normalised scores of the parts, before their weights, with a gradient."""
        return self.normalised(self._native(pixels, prompts))

    def _native(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        parts: list[Any] = self.rewards
        return torch.stack([part.from_pixels(pixels, prompts).float() for part in parts], dim=-1)


def _tower(reward: Reward) -> str:
    """Rewards that agree in this have the same features."""
    return f"{reward.encoder} {reward.preprocessing} {reward.origin.dtype}"


def _together(features: Sequence[Tensor]) -> list[Tensor]:
    """On one device: a program's features are on the CPU where a network's may not be."""
    return [tensor.to(features[0].device) for tensor in features]


def _column(texts: list[list[_Text]], r: int) -> Any:
    """All prompts as part ``r`` encoded them, in its own form."""
    values = [text[r].value for text in texts]
    return torch.stack(values) if texts and texts[0][r].is_row else values


def _origin(rewards: Sequence[Reward], recipe: Recipe, model: str) -> Origin:
    """Changes when a weight, a normalisation or any part's checkpoint does."""
    digests = [f"{r.origin.model} {r.origin.revision} {r.origin.checkpoint_sha256}" for r in rewards]
    name = hashlib.sha256("\0".join([recipe.model_dump_json(), *digests]).encode()).hexdigest()
    coarsest = min(rewards, key=lambda reward: COARSEST_FIRST.index(reward.origin.dtype))  # programs say fp32 always
    return Origin(model=model, checkpoint_sha256=name, dtype=coarsest.origin.dtype)


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> Mix | Agreement:
    """The mix that the TOML file ``path`` describes, with its parts loaded, or their agreement.

    Raises InputError for another variant, a file that is missing or does not fit, and whatever a part refuses.
    """
    if variant and variant not in VARIANTS:
        raise InputError(f"mix has no variant {variant!r}{nearest(variant, VARIANTS)}")
    if not path:
        raise InputError("a mix is a file: write --reward mix@FILE.toml")
    file = Path(path).expanduser()
    recipe = _mix_file.read(file)
    mix = Mix([(_load_part(part, file, device, dtype), part) for part in recipe.parts], recipe.pessimism, path)
    return Agreement(mix) if variant == "agreement" else mix


def _load_part(part: Part, file: Path, device: str, dtype: Any) -> Reward:
    head, at, where = part.reward.partition("@")
    if head.partition(":")[0] == "mix":
        raise InputError(f"{file}: a mix cannot hold another mix; list the parts of {part.reward} instead")
    beside = file.parent / where
    reference = f"{head}@{beside}" if at and where and beside.exists() else part.reward
    return load_reward(reference, device, dtype)
