"""Which pairs are worth most: those whose answer is expected to tell most about who is better.

Of models: Bradley-Terry's posterior over all votes so far; of images (one model, or makers unknown): one for each
prompt. The worth of a pair is the information that its vote should bring about the order of all (`order_information`):
much where a difference is unsure, near zero and tells about others, little between far and well-known ones. Pairs are
drawn greedily: after each, the posterior is as sure as if it had been answered, so that a batch does not ask one thing
many times.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from visfeedback.feedback.queue import Pair, by_prompt
from visfeedback.plugins import InputError
from visfeedback.preferences import bradley_terry as bt
from visfeedback.preferences.votes import Votes, votes
from visfeedback.types.records import Feedback, Sample

PRIOR_IMAGES = 1.0  # precision of an image's strength: images of one prompt seldom differ by more than some logits
Array = bt.Array


def active_pairs(
    samples: Iterable[Sample],
    feedback: Iterable[Feedback],
    n: int,
    seed: int = 0,
    of: Literal["auto", "models", "images"] = "auto",
) -> list[Pair]:
    """At most ``n`` pairs of different images of one prompt, none that has been judged, the most telling first.

    ``of="auto"``: about models when the samples come from two or more, else about images. Deterministic in ``seed``.
    Raises InputError when no prompt has two different images.
    """  # fmt: skip
    if n < 1:
        raise InputError(f"n is {n}; ask for at least 1 pair")
    groups = [group for group in by_prompt(samples) if len(group) > 1]
    if not groups:
        raise InputError("no prompt has two different images; type generate --per-prompt 2 or more")
    records = list(feedback)
    judged = {(r.prompt_id, frozenset(pair)) for r in records for pair in _pairs_in(r.sample_ids)}
    makers = {sample.id: maker(sample) for group in groups for sample in group}
    if of == "models" or (of == "auto" and len(set(makers.values())) > 1):
        return list(_of_models(groups, makers, judged, votes(records, makers, None), n, seed))
    return _of_images(groups, judged, records, n, seed)


def maker(sample: Sample) -> str:
    """Who made it, as `Store.sources` says it."""
    return f"{sample.model}+{sample.adapter}" if sample.adapter else sample.model


def _pairs_in(ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((a, b) for i, a in enumerate(ids) for b in ids[i + 1 :])


class ModelChooser:
    """The posterior over models; `best` names the pair of models to ask about, `asked` counts it as answered."""

    def __init__(self, models: Sequence[str], found: Votes, prior: float = bt.PRIOR) -> None:
        index = {name: i for i, name in enumerate(models)}
        m = len(models)
        table = np.zeros((m, m, 2))
        if len(found):
            place = [index[name] for name in found.models]
            table[np.ix_(place, place)] = bt.tables(found)
        theta, eta, covariance = bt.posterior(table[None], prior)
        self.theta, self.eta, self.covariance = theta[0], float(eta[0]), covariance[0]

    def worth(self) -> Array:
        """(M, M) nats that the next vote is expected to bring about the order."""
        return bt.order_information(self.theta, self.eta, self.covariance)

    def best(self, allowed: Array, rng: np.random.Generator) -> tuple[int, int] | None:
        """The pair i < j that is worth most among the allowed ones (M, M); ties are broken at random."""
        worth = np.where(np.triu(allowed, 1), self.worth(), -1)
        top = np.argwhere(worth >= worth.max() - 1e-12) if worth.max() > 0 else []
        return None if not len(top) else (int((pick := top[rng.integers(len(top))])[0]), int(pick[1]))

    def asked(self, i: int, j: int) -> None:
        self.covariance = bt.after_vote(self.theta, self.eta, self.covariance, i, j)


def _of_models(
    groups: list[list[Sample]], makers: Mapping[str, str], judged: set[tuple[str, frozenset[str]]], found: Votes,
    n: int, seed: int,
) -> Iterator[Pair]:  # fmt: skip
    names = sorted(set(makers.values()) | set(found.models))
    index = {name: i for i, name in enumerate(names)}
    chooser, rng = ModelChooser(names, found), np.random.default_rng(seed)
    stock: defaultdict[tuple[int, int], list[Pair]] = defaultdict(list)
    for group in groups:
        for a, b in ((a, b) for i, a in enumerate(group) for b in group[i + 1 :]):
            i, j = sorted((index[makers[a.id]], index[makers[b.id]]))
            if i != j and (a.prompt_id, frozenset((a.id, b.id))) not in judged:
                stock[i, j].append((a, b))
    for pairs in stock.values():
        random.Random(f"{seed}:{pairs[0][0].id}").shuffle(pairs)
    allowed = np.zeros((len(names), len(names)), dtype=bool)
    for i, j in stock:
        allowed[i, j] = True
    for _ in range(n):
        if (pick := chooser.best(allowed, rng)) is None:
            return
        yield stock[pick].pop()
        allowed[pick] = bool(stock[pick])
        chooser.asked(*pick)


def _of_images(
    groups: list[list[Sample]], judged: set[tuple[str, frozenset[str]]], records: list[Feedback], n: int, seed: int
) -> list[Pair]:
    """A posterior for each prompt; a heap of the prompts' best pairs."""
    by: defaultdict[str, list[Feedback]] = defaultdict(list)
    for record in records:
        by[record.prompt_id].append(record)
    rng = np.random.default_rng(seed)
    heap: list[tuple[float, float, int, tuple[int, int]]] = []
    choosers: list[tuple[list[Sample], ModelChooser, Array]] = []
    for group in groups:
        ids = [sample.id for sample in group]
        found = votes(by[group[0].prompt_id], {name: name for name in ids}, None)
        allowed = np.array([[frozenset((a, b)) not in _of(judged, group) for b in ids] for a in ids])
        choosers.append((group, ModelChooser(ids, found, PRIOR_IMAGES), allowed))
        _push(heap, choosers, len(choosers) - 1, rng)
    chosen: list[Pair] = []
    while heap and len(chosen) < n:
        _, _, k, (i, j) = heapq.heappop(heap)
        group, chooser, allowed = choosers[k]
        chosen.append((group[i], group[j]))
        allowed[i, j] = False
        chooser.asked(i, j)
        _push(heap, choosers, k, rng)
    return chosen


def _of(judged: set[tuple[str, frozenset[str]]], group: list[Sample]) -> set[frozenset[str]]:
    prompt = group[0].prompt_id
    ids = [sample.id for sample in group]
    return {pair for a, b in _pairs_in(ids) if (prompt, pair := frozenset((a, b))) in judged}


def _push(
    heap: list[tuple[float, float, int, tuple[int, int]]], choosers: list[tuple[list[Sample], ModelChooser, Array]],
    k: int, rng: np.random.Generator,
) -> None:  # fmt: skip
    _, chooser, allowed = choosers[k]
    if (pick := chooser.best(allowed, rng)) is not None:
        heapq.heappush(heap, (-float(chooser.worth()[pick]), float(rng.random()), k, pick))
