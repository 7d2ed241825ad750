"""Log-probabilities of stochastic steps against torch.distributions."""

from __future__ import annotations

import pytest
import torch

from visfeedback.diffusion.gaussian import draw, log_prob


def test_log_prob_equals_the_closed_form() -> None:
    """Mean over elements of Normal(mean, std).log_prob(x), one number an image."""
    x, mean = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([0.1, 1.0, 3.0])
    expected = torch.distributions.Normal(mean, std.reshape(3, 1, 1, 1)).log_prob(x).mean(dim=(1, 2, 3))
    torch.testing.assert_close(log_prob(x, mean, std), expected)


def test_log_prob_is_float32_and_passes_gradients_to_the_mean() -> None:
    """d/dmean of -(x - mean)^2 / (2 * 2^2), averaged over 4 elements: (1 - 0) / 4 / 4."""
    mean = torch.zeros(1, 4, dtype=torch.bfloat16, requires_grad=True)
    value = log_prob(torch.ones(1, 4, dtype=torch.bfloat16), mean, torch.tensor([2.0]))
    assert value.dtype == torch.float32
    value.sum().backward()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, torch.full((1, 4), 1 / 16, dtype=torch.bfloat16))


def test_a_deterministic_step_has_no_log_prob() -> None:
    with pytest.raises(ValueError, match="eta must be > 0"):
        log_prob(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([1.0, 0.0]))


def test_draw_scales_noise_per_image() -> None:
    mean, noise = torch.zeros(2, 3), torch.ones(2, 3)
    assert draw(mean, torch.tensor([0.0, 2.0]), noise).tolist() == [[0, 0, 0], [2, 2, 2]]
