"""D3PO: the grouped loss is the sum over all pairs, at the cost of one evaluation an image."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from tiny_rollouts import WALK, context, moved, rollouts, tiny_policy

from visfeedback.methods.d3po import D3PO, pairs
from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import log_probs, piece, reach
from visfeedback.types.batches import Condition


@pytest.fixture(scope="module")
def backbone(tiny_sd):
    return tiny_policy(tiny_sd)


def test_loss_is_ln_2_while_policy_equals_reference(backbone):
    """All log-ratios are 0, so -logsigmoid(0) = ln 2 for every pair, whoever is better."""
    loss, metrics = D3PO().loss(backbone, piece(rollouts(backbone), 1), context())
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["pairs"] == 6 and metrics["clipped"] == 0


def published(backbone, batch, method, i, j) -> torch.Tensor:
    """One pair of one step as the released code has it: both images evaluated for this pair alone, ratios clamped,
    -log sigmoid(beta log rho_0 h_0 + beta log rho_1 h_1) with h = (1, -1) or (-1, 1)."""
    two = batch.rows([i, j])
    now = log_probs(backbone, two)
    with torch.no_grad(), backbone.weights("reference"):
        reference = log_probs(backbone, two)
    ratio = torch.exp(now - reference).clamp(1 - method.clip, 1 + method.clip)
    h = (1.0, -1.0) if batch.scores[i] > batch.scores[j] else (-1.0, 1.0)
    inside = method.beta * (torch.log(ratio[0]) * h[0] + torch.log(ratio[1]) * h[1])
    return -torch.log(torch.sigmoid(inside)).mean()


@pytest.mark.parametrize("beta", [0.1, 30.0])
def test_a_group_equals_the_sum_over_all_its_pairs(backbone, beta):
    """7 images: 21 pairs. Loss times 21, and its gradient, are those of 21 pairs each evaluated by itself."""
    method = D3PO(beta=beta, clip=0.5)
    with moved(backbone):
        batch = piece(rollouts(backbone, each=7), 1)
        batch = replace(batch, reference_log_prob=_reference(backbone, batch))
        parameters = list(backbone.parameters())
        loss, _ = method.loss(backbone, batch, context())
        ours = torch.autograd.grad(21 * loss, parameters)
        parts = [published(backbone, batch, method, i, j) for i, j in combinations(range(7), 2)]
        total = torch.stack(parts).sum()
        theirs = torch.autograd.grad(total, parameters)
    assert (21 * loss).item() == pytest.approx(total.item(), rel=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def _reference(backbone, batch):
    with torch.no_grad(), backbone.weights("reference"):
        return log_probs(backbone, batch)


def test_each_image_is_evaluated_once_and_no_reference_runs(backbone, monkeypatch):
    """7 images, 21 pairs: 7 rows with a graph, 7 without one for the unconditional branch."""
    sizes, predict = [], backbone.predict
    batch = piece(rollouts(backbone, each=7), 0)
    monkeypatch.setattr(backbone, "predict", lambda x, t, c: sizes.append(len(x)) or predict(x, t, c))
    D3PO().loss(backbone, batch, context())
    assert sizes == [7, 7]


def test_pairs_are_within_groups_and_leave_out_ties(backbone):
    """Scores 0 0 | 0 1: one group of equals, one pair whose second image is better."""
    batch = replace(rollouts(backbone, groups=2, each=2), scores=torch.tensor([0.0, 0.0, 0.0, 1.0]))
    first, second, probability = pairs(batch)
    assert (first.tolist(), second.tolist(), probability.tolist()) == ([2], [3], [0.0])


def test_groups_count_alike_with_ties_and_however_they_are_split(backbone):
    """1 x 3 = 3 x 1: groups of scores 0 1 2, 0 0 1 and 1 1 1 have 3, 2 and 0 pairs. Each pair of the first counts 1/9,
    of the second 1/6: while policy = reference, 3/9 ln 2 + 2/6 ln 2; away from it, the mean of each group's loss."""
    batch = piece(rollouts(backbone, groups=3, each=3), 1)
    batch = replace(batch, scores=torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    assert D3PO().loss(backbone, batch, context())[0].item() == pytest.approx(2 / 3 * math.log(2), abs=1e-6)
    method = D3PO(beta=30.0, clip=0.5)
    with moved(backbone):
        parameters = list(backbone.parameters())
        whole = torch.autograd.grad(method.loss(backbone, batch, context())[0], parameters)
        parts = [method.loss(backbone, batch.rows(slice(3 * g, 3 * g + 3)), context())[0] for g in range(3)]
        single = torch.autograd.grad(torch.stack(parts).mean(), parameters)
    for a, b in zip(whole, single, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))  # other batch shapes


def test_votes_of_people_decide_where_they_are(backbone):
    """better[i, k]: of three images 0 beats 1, 1 and 2 are split .8, 0 and 2 were never compared: two pairs."""
    nan = math.nan
    better = torch.tensor([[nan, 1.0, nan], [0.0, nan, 0.8], [nan, 0.2, nan]])
    batch = replace(rollouts(backbone, groups=2, each=3), better=better.repeat(2, 1))
    first, second, probability = pairs(batch)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (1, 2), (3, 4), (4, 5)]
    torch.testing.assert_close(probability, torch.tensor([1.0, 0.8, 1.0, 0.8]))
    whole = replace(batch, better=torch.full_like(batch.better, 0.5))
    assert D3PO().loss(backbone, piece(whole, 0), context())[0].item() == 0, "nothing but ties: no gradient"


def test_a_step_down_the_gradient_makes_the_better_image_likelier(backbone):
    batch, method = piece(rollouts(backbone, each=2), 1), D3PO(beta=1.0)
    with moved(backbone, 0.0):
        loss, _ = method.loss(backbone, batch, context())
        gradients = torch.autograd.grad(loss, list(backbone.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(backbone.parameters(), gradients, strict=True):
                parameter.sub_(0.01 * gradient / gradient.norm().clamp_min(1e-12))
            after = log_probs(backbone, batch)[:, 0] - batch.log_prob[:, 0]
    assert after[1] > after[0], "image 1 has the higher score"


def test_even_steps_compare_ratios_over_reach(backbone):
    """Two images whose log-ratios are +.02 and -.02 times the step's reach: z = beta (.02 + .02) whatever the step."""
    whole = rollouts(backbone, each=2)
    for k in range(WALK.steps):
        batch = piece(whole, k)
        far = reach(backbone.process, batch) * torch.tensor([[0.02], [-0.02]])
        with torch.no_grad():
            batch = replace(batch, reference_log_prob=log_probs(backbone, batch) - far)
        loss, _ = D3PO(beta=5.0, even_steps=True).loss(backbone, batch, context())
        better = 1.0 if batch.scores[0] > batch.scores[1] else -1.0
        assert loss.item() == pytest.approx(math.log1p(math.exp(-better * 5.0 * 0.04)), abs=1e-4)


def test_outside_the_clip_there_is_no_gradient(backbone):
    """A reference far away puts every ratio at an edge: log(1.1) for both, so z = 0 and nothing pushes."""
    batch = piece(rollouts(backbone, each=2), 1)
    far = replace(batch, reference_log_prob=batch.log_prob - 5)
    loss, metrics = D3PO().loss(backbone, far, context())
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6) and metrics["clipped"] == 1
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(loss, list(backbone.parameters())))


def test_gradients_reach_the_adapter_and_nothing_else(backbone):
    with moved(backbone):
        D3PO().loss(backbone, piece(rollouts(backbone), 1), context())[0].backward()
        trained = {id(parameter) for parameter in backbone.parameters()}
        grads = [(id(p) in trained, p.grad) for p in backbone.pipe.unet.parameters()]
        assert all((grad is not None) == own for own, grad in grads)


def test_groups_of_equal_scores_are_left_out():
    scores, group = torch.tensor([1.0, 1.0, 1.0, 2.0]), torch.tensor([0, 0, 1, 1])
    state: dict = {}
    assert D3PO().weigh(scores, group, ["a", "a", "b", "b"], state).tolist() == [0, 0, 1, 1]
    assert state["metrics"]["groups_used"] == 0.5


def test_without_the_references_numbers_there_is_a_clear_word(backbone):
    batch = replace(piece(rollouts(backbone), 0), reference_log_prob=None)
    with pytest.raises(InputError, match="needs the reference's log-probabilities"):
        D3PO().loss(backbone, batch, context())


def test_prompts_of_a_batch_keep_their_conditions(backbone):
    """Two groups: exchanging the prompts of the groups changes the losses of the rows."""
    batch = piece(rollouts(backbone, groups=2, each=2), 1)
    tokens = batch.condition.tokens[[2, 3, 0, 1]]
    a, b = (log_probs(backbone, one) for one in (batch, replace(batch, condition=Condition(tokens=tokens))))
    assert (a - b).abs().min() > 0
