"""DDPO: PPO's clipped objective on steps, and advantages as its authors and GRPO take them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy
import pytest
import torch
from tiny_rollouts import WALK, context, moved, rollouts, tiny_policy

from visfeedback.methods._advantages import by_batch, by_group, by_prompt
from visfeedback.methods.ddpo import DDPO
from visfeedback.sampling.rollout import log_probs, log_probs_and_means, piece, reach


@pytest.fixture(scope="module")
def backbone(tiny_sd):
    return tiny_policy(tiny_sd)


def test_the_ratio_is_1_before_the_first_update(backbone):
    """At the batch shape of drawing it is exactly 1; then loss = -mean(advantage)."""
    with moved(backbone):
        whole = rollouts(backbone)
        whole = replace(whole, weight=torch.tensor([2.0, -1.0, 0.5, 0.5]))
        for k in range(WALK.steps):
            loss, metrics = DDPO().loss(backbone, piece(whole, k), context())
            assert metrics["ratio_off"] == 0 and metrics["clipped"] == 0
            assert loss.item() == pytest.approx(-0.5, abs=1e-6)


def test_the_gradient_at_ratio_1_is_that_of_the_score_function(backbone):
    """d/dtheta of -A rho at rho = 1 is -A d log p."""
    batch = piece(rollouts(backbone), 1)
    weight = torch.tensor([1.0, -2.0, 0.3, 0.0])
    parameters = list(backbone.parameters())
    loss, _ = DDPO().loss(backbone, replace(batch, weight=weight), context())
    ours = torch.autograd.grad(loss, parameters)
    expected = torch.autograd.grad(-(weight * log_probs(backbone, batch)[:, 0]).mean(), parameters)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_even_steps_push_the_prediction_alike(backbone):
    """d/dtheta of -A exp(l / reach) at ratio 1 is -A d log p / reach, so the gradient at the prediction is the step's
    noise at every step; the clip then cuts l / reach."""
    whole = rollouts(backbone)
    for k in range(WALK.steps):
        batch = piece(whole, k)
        far = reach(backbone.process, batch)
        loss, metrics = DDPO(even_steps=True).loss(backbone, batch, context())
        assert metrics["ratio_off"] == 0
        ours = torch.autograd.grad(loss, list(backbone.parameters()))
        plain = torch.autograd.grad(DDPO().loss(backbone, batch, context())[0], list(backbone.parameters()))
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a * far[0, 0], b, rtol=1e-4, atol=1e-7)
    shifted = replace(batch, log_prob=batch.log_prob - 0.5 * far)  # e^.5 is clipped to 1.1
    loss, _ = DDPO(even_steps=True, clip=0.1).loss(backbone, replace(shifted, weight=torch.ones(4)), context())
    assert loss.item() == pytest.approx(-1.1, abs=1e-4)


@pytest.mark.parametrize(("shift", "advantage", "expected"), [
    (0.2, 1.0, -1.1), (0.2, -1.0, math.exp(0.2)), (-0.2, 1.0, -math.exp(-0.2)), (-0.2, -1.0, 0.9),
])  # fmt: skip
def test_the_clipped_objective(backbone, shift, advantage, expected):
    """max(-A rho, -A clamp(rho, .9, 1.1)) with rho = e^shift: e^.2 = 1.221 is clipped to 1.1 when that helps
    (A > 0), e^-.2 = .819 to .9 when A < 0; otherwise the ratio itself stands."""
    batch = piece(rollouts(backbone, each=2), 1)
    batch = replace(batch, log_prob=batch.log_prob - shift, weight=torch.full((2,), advantage))
    loss, metrics = DDPO(clip=0.1).loss(backbone, batch, context())
    assert loss.item() == pytest.approx(expected, abs=1e-4) and metrics["clipped"] == 1


def test_the_penalty_is_the_divergence_of_the_steps(backbone):
    """KL of two Gaussians with one spread is (mu - mu_ref)^2 / (2 sigma^2) an element; 0 at the reference."""
    plain, held = DDPO(), DDPO(kl=2.0)
    batch = piece(rollouts(backbone), 1)
    assert held.loss(backbone, batch, context())[1]["kl"] == 0
    with moved(backbone):
        batch = replace(piece(rollouts(backbone), 1), weight=torch.zeros(4))
        loss, metrics = held.loss(backbone, batch, context())
        _, means, std = log_probs_and_means(backbone, batch)
        with backbone.weights("reference"):
            reference = log_probs_and_means(backbone, batch)[1]
        normal = [torch.distributions.Normal(mean, std[:, :, None, None, None]) for mean in (means, reference)]
        expected = torch.distributions.kl_divergence(*normal).mean()
        assert metrics["kl"] == pytest.approx(expected.item(), rel=1e-4) and metrics["kl"] > 0
        assert loss.item() == pytest.approx(
            2 * expected.item() + plain.loss(backbone, batch, context())[0].item(), rel=1e-4
        )


def test_gradients_reach_the_adapter_and_nothing_else(backbone):
    with moved(backbone):
        DDPO(kl=0.1).loss(backbone, piece(rollouts(backbone), 1), context())[0].backward()
        trained = {id(parameter) for parameter in backbone.parameters()}
        assert all((p.grad is not None) == (id(p) in trained) for p in backbone.pipe.unet.parameters())


def reference_tracker(rounds, keep, least):
    """The statistics of the authors' code: a deque for every prompt, numpy's mean and std, 1e-6."""
    from collections import deque

    stats: dict = {}
    for prompts, rewards in rounds:
        prompts, rewards = numpy.array(prompts), numpy.array(rewards)
        advantages = numpy.empty_like(rewards)
        for prompt in numpy.unique(prompts):
            mine = rewards[prompts == prompt]
            buffer = stats.setdefault(prompt, deque(maxlen=keep))
            buffer.extend(mine)
            mean, std = (rewards.mean(), rewards.std()) if len(buffer) < least else (
                numpy.mean(buffer), numpy.std(buffer))  # fmt: skip
            advantages[prompts == prompt] = (mine - mean) / (std + 1e-6)
        yield advantages


def test_statistics_by_prompt_are_those_of_the_authors():
    """Three rounds; prompt a has enough scores in the second, and forgets its oldest in the third."""
    generator = numpy.random.default_rng(0)
    rounds = [(["a"] * 3 + ["b"] * 1, generator.normal(size=4).tolist()) for _ in range(3)]
    state: dict = {}
    method = DDPO(memory=8, least=5, advantage_clip=100.0)
    for (prompts, rewards), expected in zip(rounds, reference_tracker(rounds, 8, 5), strict=True):
        scores = torch.tensor(rewards, dtype=torch.float64)
        found = method.weigh(scores, torch.zeros(4), prompts, state)
        numpy.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    assert len(state["ddpo_scores"]["a"]) == 8 and len(state["ddpo_scores"]["b"]) == 3


def test_advantages_of_a_group_add_up_to_0():
    """By group: mean 0 and spread 1 in each; a group of equals is exactly 0, so that it can be skipped."""
    scores = torch.tensor([1.0, 2.0, 6.0, 0.3, 0.3, 0.3])
    group = torch.tensor([7, 7, 7, 2, 2, 2])
    found = by_group(scores, group)
    assert found[:3].sum().abs() < 1e-6 and found[:3].std(correction=0) == pytest.approx(1, abs=1e-5)
    assert found[3:].tolist() == [0, 0, 0]
    plain, batch = by_group(scores, group, "none"), by_group(scores, group, "batch")
    torch.testing.assert_close(plain[:3], torch.tensor([-2.0, -1.0, 3.0]))
    torch.testing.assert_close(batch, plain / (scores.std(correction=0) + 1e-6))


@pytest.mark.parametrize("score", [21.37, 5.3])
def test_equal_scores_are_no_advantage(score):
    """In float32 the mean of 22 scores of 21.37 is off by 3.8e-6, and so is the spread: an advantage of 3.8 / (3.8 + 1)
    = .79 for all (5.3: .32). It is 0, also where a prompt's memory has no other score while another's scores differ."""
    scores = torch.full((22,), score)
    assert by_batch(scores).tolist() == [0] * 22 and by_group(scores, torch.zeros(22)).tolist() == [0] * 22
    seen: dict = {"a": scores.tolist()}
    mixed = torch.cat([scores[:3], torch.tensor([score + 1, score - 1])])
    found = by_prompt(mixed, ["a", "a", "a", "b", "b"], seen, 32, 2)
    assert found[:3].tolist() == [0, 0, 0] and found[3:].tolist() == pytest.approx([1, -1], abs=1e-5)
    assert found.dtype == torch.float32


def test_nearly_equal_scores_are_compared_exactly():
    """One of 24 scores differs by a 64th, which float32 has: (1 - 1/24) / 64 over sqrt(1/24 (1 - 1/24)) / 64, that is
    sqrt(23) = 4.796 for it and -1 / sqrt(23) for the others, less 1e-6 in a spread of .00312."""
    scores = torch.full((24,), 21.375)
    scores[5] += 1 / 64
    spread = math.sqrt(23) / 24 / 64
    expected = torch.full((24,), -1 / 24 / 64 / (spread + 1e-6))
    expected[5] = 23 / 24 / 64 / (spread + 1e-6)
    for found in (by_batch(scores), by_group(scores, torch.zeros(24)), by_prompt(scores, ["a"] * 24, {}, 32, 2)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_advantages_are_clipped():
    scores = torch.cat([torch.zeros(99), torch.ones(1) * 100])
    found = DDPO(advantage="batch", advantage_clip=2.0).weigh(scores, torch.zeros(100), ["a"] * 100, {})
    assert found.max() == 2 and found.min() > -0.2


def test_only_the_groups_advantage_needs_groups():
    assert DDPO(advantage="group").least_group == 2 and DDPO().least_group == 1
    seen: dict = {}
    assert by_prompt(torch.tensor([1.0, 3.0]), ["a", "b"], seen, 4, 2).tolist() == pytest.approx([-1, 1], abs=1e-4)
