"""Weights and best-of-N learn in the shapes world: a taste for dark backgrounds shows on unseen prompts."""

from __future__ import annotations

import pytest

from tests.support.learning import darkness_gain


@pytest.mark.learning
@pytest.mark.parametrize(
    "method", [{"name": "rwr", "over": "prompt", "temperature": 0.05}, {"name": "raft"}], ids=["rwr", "raft"]
)
def test_a_taste_is_learned_from_the_models_own_images(tmp_path, method):
    """3 rounds of 12 prompts x 6 images, 12 steps on each; the 95% interval of the gain must lie above 0."""
    rounds = {"prompts_per_round": 12, "per_prompt": 6, "every": 12, "guidance": 1.0}
    gain = darkness_gain(tmp_path, method, optim={"steps": 36, "batch_size": 16}, rollout=rounds)
    assert gain.low > 0, gain
