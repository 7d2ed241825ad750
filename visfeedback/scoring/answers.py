"""Features and prompts -> scores for the shards: pairs, or a whole matrix at once.

Rewards whose answers are slow, or paid for, say how many pairs one call should get at most (``pairs_at_once``); they
get only pairs that are missing, and what they answered is kept after every call. May import: types, rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from visfeedback.rewards import pick
from visfeedback.scoring.combine import combine
from visfeedback.scoring.feed import Ready
from visfeedback.scoring.texts import Texts
from visfeedback.scoring.work import NO_PROMPT, NOT_FINITE
from visfeedback.types.protocols import Reward

CELLS = 65_536
"""Images x prompts that one call of ``combine`` gets at most."""
PAIRS = 1024
"""Pairs that one call gets at most, unless a row of features is large."""
LARGE = 64 * 2**10
"""Bytes: of larger features no more rows are gathered at once than fit in a batch."""


class Answer:
    """The scores of one image by one reward while they are found."""

    def __init__(self, ready: Ready, member: int) -> None:
        self.ready, self.member = ready, member
        self.prompts = ready.task.unit.prompts
        self.missing = ready.task.missing[member]
        self.scores = np.full(len(self.prompts), np.nan, np.float32)
        self.errors: dict[int, str] = {}

    def fill(self, prompts: np.ndarray, values: np.ndarray, errors: Mapping[int, str] | None = None) -> None:
        """A finite value is a score, every other one an error; ``errors`` by place in ``values``."""
        good = np.isfinite(values)
        self.scores[prompts[good]] = values[good]
        for place in np.flatnonzero(~good):
            self.errors[int(prompts[place])] = (errors or {}).get(int(place), NOT_FINITE)

    def hand_in(self) -> None:
        """What was filled in since the last time goes to the shard."""
        if self.errors or np.isfinite(self.scores).any():
            self.ready.shard.add(self.ready.task.unit, self.member, self.scores, self.errors)
        self.scores, self.errors = np.full_like(self.scores, np.nan), {}


class Answers:
    """Turns what the encoders give into scores of the members of a group."""

    def __init__(self, rewards: Sequence[Reward], batch_size: int) -> None:
        self._rewards = rewards
        self._batch = batch_size
        self._texts = [Texts(reward, batch_size) for reward in rewards]

    def refuse(self, ready: Ready, members: Sequence[int], error: str) -> None:
        """The image cannot be read: no score of these rewards."""
        for answer in (Answer(ready, member) for member in members):
            answer.errors = {int(p): error for p in np.flatnonzero(answer.missing)}
            answer.hand_in()

    def give(self, members: Sequence[int], batch: Sequence[Ready], features: Tensor) -> None:
        """Scores of one batch (N, ...) by every reward of the group that still misses some."""
        for member in members:
            rows = [row for row, ready in enumerate(batch) if member in ready.task.missing]
            answers = [Answer(batch[row], member) for row in rows]
            if answers:
                own = features if len(rows) == len(batch) else features[rows]
                self._score(member, answers, own)
            for answer in answers:
                answer.hand_in()

    def _score(self, member: int, answers: list[Answer], features: Tensor) -> None:
        shared = answers[0].prompts
        if not self._rewards[member].reads_prompt:
            self._without_prompt(member, answers, features)
        elif self._most(member):
            self._pairs(member, answers, features)
        elif len(shared) > 1 and None not in shared and all(answer.prompts is shared for answer in answers):
            self._matrix(member, answers, features)
        else:
            self._pairs(member, answers, features)

    def _without_prompt(self, member: int, answers: list[Answer], features: Tensor) -> None:
        """One score for whatever prompts there are."""
        scores, failed = combine(self._rewards[member], features, self._texts[member](("",)), "matrix")
        for row, answer in enumerate(answers):
            prompts = np.flatnonzero(answer.missing)
            errors = dict.fromkeys(range(len(prompts)), failed[row, 0]) if (row, 0) in failed else {}
            answer.fill(prompts, np.repeat(scores[row], len(prompts)), errors)

    def _matrix(self, member: int, answers: list[Answer], features: Tensor) -> None:
        """All images against all prompts that somebody misses, in as few calls as memory allows."""
        prompts = answers[0].prompts
        columns = np.flatnonzero(np.any([answer.missing for answer in answers], axis=0))
        step = max(1, CELLS // len(answers))
        for start in range(0, len(columns), step):
            part = columns[start : start + step]
            texts = self._texts[member](tuple(str(prompts[p]) for p in part))
            scores, failed = combine(self._rewards[member], features, texts, "matrix")
            for row, answer in enumerate(answers):
                errors = {c: error for (r, c), error in failed.items() if r == row} if failed else {}
                answer.fill(part, scores[row], errors)

    def _pairs(self, member: int, answers: list[Answer], features: Tensor) -> None:
        """Every image with its own prompts."""
        pairs: list[tuple[int, int]] = []
        for row, answer in enumerate(answers):
            for p in map(int, np.flatnonzero(answer.missing)):
                if answer.prompts[p] is None:
                    answer.errors[p] = NO_PROMPT
                else:
                    pairs.append((row, p))
        step = self._most(member) or (PAIRS if features[0].nbytes <= LARGE else self._batch)
        for start in range(0, len(pairs), step):
            self._some_pairs(member, answers, features, pairs[start : start + step])
            if self._most(member):
                for row in dict(pairs[start : start + step]):
                    answers[row].hand_in()

    def _most(self, member: int) -> int:
        """Pairs that one call may get; 0: as many as memory allows."""
        return getattr(self._rewards[member], "pairs_at_once", 0)

    def _some_pairs(self, member: int, answers: list[Answer], features: Tensor, pairs: list[tuple[int, int]]) -> None:
        rows = [row for row, _ in pairs]
        if len(rows) > 1 and len(set(rows)) == 1:
            return self._one_image(member, answers[rows[0]], features[rows[:1]], [p for _, p in pairs])
        own = features if rows == list(range(len(features))) else features[rows]
        prompts = [str(answers[row].prompts[p]) for row, p in pairs]
        unique = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        texts = self._texts[member](tuple(unique))
        if len(unique) < len(prompts):
            texts = pick(texts, [unique[prompt] for prompt in prompts])
        scores, failed = combine(self._rewards[member], own, texts, "paired")
        for place, (row, p) in enumerate(pairs):
            errors = {0: failed[place, place]} if (place, place) in failed else {}
            answers[row].fill(np.array([p]), scores[place : place + 1], errors)

    def _one_image(self, member: int, answer: Answer, features: Tensor, columns: list[int]) -> None:
        """One image (1, ...) with several prompts of its own."""
        texts = self._texts[member](tuple(str(answer.prompts[p]) for p in columns))
        scores, failed = combine(self._rewards[member], features, texts, "matrix")
        answer.fill(np.array(columns), scores[0], {column: error for (_, column), error in failed.items()})
