"""Batches move and slice all their tensors together."""

from __future__ import annotations

import torch

from visfeedback.types.batches import Condition, Pairs


def condition(rows: int) -> Condition:
    tokens = torch.arange(rows * 6.0).reshape(rows, 3, 2)
    return Condition(tokens=tokens, pooled=tokens[:, 0], extras={"guidance": torch.arange(float(rows))})


def test_rows_reach_nested_conditions_and_extras() -> None:
    latents = torch.arange(4.0).reshape(4, 1, 1, 1)
    each = torch.arange(4.0)
    batch = Pairs(latents, -latents, condition(4), probability=each, weight=each, noise=latents, t=each / 4)
    part = batch.rows([3, 1])
    assert part.winner.flatten().tolist() == [3, 1]
    assert part.loser.flatten().tolist() == [-3, -1]
    assert part.condition.tokens.equal(batch.condition.tokens[[3, 1]])
    assert part.condition.extras["guidance"].tolist() == [3, 1]
    assert part.reference_errors is None
    assert batch.to("cpu").t.equal(batch.t)


def test_cat_undoes_slicing() -> None:
    """Law: the rows of a condition, joined again, are the condition."""
    whole = condition(5)
    joined = Condition.cat([whole.rows(slice(0, 2)), whole.rows(slice(2, 5))])
    assert joined.tokens.equal(whole.tokens)
    assert joined.pooled is not None
    assert whole.pooled is not None
    assert joined.pooled.equal(whole.pooled)
    assert joined.extras["guidance"].equal(whole.extras["guidance"])
    assert Condition.cat([Condition(tokens=whole.tokens)] * 2).pooled is None
