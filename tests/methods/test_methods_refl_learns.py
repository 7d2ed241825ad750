"""Reward gradients learn in the shapes world: a taste for dark backgrounds shows on unseen prompts."""

from __future__ import annotations

import pytest

from tests.support.learning import darkness_gain


@pytest.mark.learning
@pytest.mark.parametrize(
    "method",
    [
        {"name": "refl", "window": (0.5, 1.0), "objective": {"shape": "linear", "scale": 1.0}},
        {"name": "draft", "last": 2, "checkpointing": False},
    ],
    ids=["refl", "draft"],
)
def test_a_taste_is_learned_from_its_gradient(tmp_path, method):
    """20 steps of 8 images; the 95% interval of the gain, over prompts, must lie above 0.03 of the brightness range."""
    sections = {"optim": {"steps": 20, "batch_size": 8, "lr": 2e-3}, "rollout": {"guidance": 1.0}}
    gain = darkness_gain(tmp_path, method, **sections)
    assert gain.low > 0.03, gain
