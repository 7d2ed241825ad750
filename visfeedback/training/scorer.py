"""The reward of a run: pictures and prompts in, checked scores out, patiently when it is a server.

May import: types, plugins, rewards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from PIL.Image import Image, fromarray, new
from torch import Tensor

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import by_size, pick
from visfeedback.training.settings_online import RewardChoice

EMPTY = new("RGB", (64, 64))


class Unscored(InputError):
    """A reward gave no usable score."""


class Silent(Unscored):
    """Nobody answered; the same question may have an answer later."""


class Scorer:
    """The trained reward, and the one that is only watched."""

    def __init__(self, choice: RewardChoice, device: str) -> None:
        self.choice = choice
        self.reward: Any = rewards.load(choice.name, device, choice.dtype)
        self.watched: Any = rewards.load(choice.watch, device, choice.dtype) if choice.watch else None

    @property
    def _judges(self) -> list[Any]:
        return [self.reward] if self.watched is None else [self.reward, self.watched]

    @property
    def waits(self) -> bool:
        """Whether scoring is, in part, waiting for a server."""
        return any(is_server(judge) for judge in self._judges)

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """(B, 1) native scores, or (B, 2) with those of the watched reward. Raises Unscored."""
        return torch.stack([self._patiently(judge, images, prompts) for judge in self._judges], dim=1)

    def look(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) scores of the watched reward, where the method asks the trained one itself."""
        return self._patiently(self.watched, pictures(pixels), prompts)

    def check(self, prompts: Sequence[str]) -> None:
        """Raises Unscored for prompts whose images a reward can never score, where it can tell without an image."""
        for part in [part for judge in self._judges for part in parts(judge)]:
            unfit = [(prompt, why) for prompt in prompts if (why := cannot_score(part, prompt))]
            if unfit:
                raise Unscored(
                    f"reward {part.name} cannot score {len(unfit)} of {len(prompts)} prompts, the first is "
                    f"{unfit[0][0]!r}: {unfit[0][1]}; leave them out of --rollout.prompts, or choose another reward"
                )

    def _patiently(self, reward: Any, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """What a server does not answer is asked again; a wrong answer, or a program that fails, would come again."""
        if not is_server(reward):
            return checked(reward, images, prompts)
        wait, line = self.choice.wait, ""
        for attempt in range(self.choice.retries + 1):
            if attempt:
                time.sleep(wait)
                wait *= 2
            try:
                return checked(reward, images, prompts)
            except Silent as error:
                line = str(error)
            except Unscored:
                raise
            except Exception as error:  # whatever its client raises when nobody answers
                line = (str(error).splitlines() or [type(error).__name__])[0]
        attempts = self.choice.retries + 1
        raise Silent(f"reward {reward.name} does not answer ({attempts} attempts): {line}")


class Desk:
    """Where batches wait for the scorer, which takes one after the other in a thread; after a failure it takes none."""

    def __init__(self, scorer: Scorer, overlap: bool) -> None:
        """Without ``overlap`` whoever hands a batch in waits until it is scored."""
        self._scorer, self._overlap = scorer, overlap
        self._batches: list[Future[Tensor]] = []
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def look(self) -> None:
        """Raises what the scorer failed with, if it has."""
        for batch in self._batches:
            if batch.done():
                batch.result()

    def hand_in(self, images: Sequence[Image], prompts: Sequence[str]) -> None:
        before = self._batches[-1] if self._batches else None
        self._batches.append(self._thread.submit(self._score, before, images, prompts))
        if not self._overlap:
            self._batches[-1].result()

    def _score(self, before: Future[Tensor] | None, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        if before is not None:
            before.result()  # has ended; a server that is away would keep every later batch as long as this one
        return self._scorer(images, prompts)

    def scores(self) -> Tensor:
        """(N, 1 or 2) of all batches."""
        return torch.cat([batch.result() for batch in self._batches])


def parts(reward: Any) -> list[Any]:
    """The rewards in a mix, or behind its agreement; any other by itself."""
    mix = getattr(reward, "mix", reward)
    return [one for part in getattr(mix, "rewards", ()) for one in parts(part)] or [reward]


def is_server(reward: Any) -> bool:
    """Whether its answers, or those of a part of it, come from elsewhere; see ``types.protocols.Reward``."""
    origins = [part.origin for part in parts(reward)]
    return any(not o.checkpoint_sha256 and (not o.dtype or "://" in o.model) for o in origins)


def cannot_score(reward: Any, prompt: str) -> str:
    """Why no image of this prompt can have a score; empty when it can, or nobody can tell without its image.

    Programs are shown an empty picture, for most read the prompt only together with one.
    """
    if (unfit := getattr(reward, "unfit", None)) is not None:
        return unfit(prompt)
    if not reward.reads_prompt or reward.origin.model != "program":
        return ""
    try:
        rewards.score(reward, [EMPTY], [prompt])
    except InputError as error:
        return str(error)
    except Exception:  # it may have been the picture
        return ""
    return ""


def checked(reward: Any, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
    """(B,) float32 scores on the CPU. Raises Unscored for another shape and for what is no number; Silent when a server
    says why it has none."""
    scores, reasons = torch.empty(len(images)), {}
    with torch.no_grad():
        texts = reward.encode_texts(list(prompts))
        for rows, pixels in by_size([reward.preprocess(image) for image in images]):
            found = reward.combine(reward.encode_images(pixels), pick(texts, rows), "paired")
            if tuple(found.shape) != (len(rows),):
                raise Unscored(
                    f"reward {reward.name} returned scores of shape {tuple(found.shape)} for {len(rows)} images; "
                    f"expected ({len(rows)},)"
                )
            scores[rows] = found.float().cpu()
            reasons |= {rows[row]: why for (row, _), why in getattr(reward, "failures", {}).items()}
    wrong: list[int] = (~scores.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise _no_number(reward, float(scores[wrong[0]]), prompts[wrong[0]], reasons.get(wrong[0], ""))
    return scores


def _no_number(reward: Any, score: float, prompt: str, why: str) -> Unscored:
    if why and is_server(reward):
        return Silent(f"no score for an image of {prompt!r}: {why}")
    reason = f" ({why})" if why else ""
    return Unscored(
        f"reward {reward.name} gave {score:g} to an image of {prompt!r}{reason}; expected a number: choose another "
        "reward, or leave this prompt out"
    )


def pictures(pixels: Tensor) -> list[Image]:
    """(B, 3, H, W) in [0, 1] -> RGB images, rounded as pipelines do."""
    array = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [fromarray(image) for image in array]
