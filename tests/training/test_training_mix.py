"""A mix of rewards is trained on like any reward, and its parts with margins of their own; looks of low variance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_training import toy_settings

from visfeedback.methods._advantages import by_batch
from visfeedback.rewards.mix import group_spread, normalise
from visfeedback.training.fit import fit
from visfeedback.training.run import read_metrics

PROMPTS = {"rollout": {"prompts": ["a red circle", "a blue square", "a green triangle"]}}


def mix(folder: Path, *parts: str) -> dict[str, Any]:
    """The settings' table for a mix of these parts, each the lines of its own table."""
    file = folder / "mix.toml"
    file.write_text("".join(f"[[parts]]\n{part}\n" for part in parts))
    return {"name": f"mix@{file}"}


def learned(method: str, tiny_sd: Path, out: Path, reward: dict[str, Any], **knobs: Any) -> list[dict[str, float]]:
    """Rows of a run of two steps whose adapter moved."""
    fit(toy_settings(method, tiny_sd, reward=reward, optim={"steps": 2}, method=knobs, **PROMPTS), out)
    assert any(v.abs().sum() > 0 for name, v in adapter(out).items() if "lora_B" in name)
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and all(row["grad_norm"] > 0 for row in rows)
    return rows


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter/pytorch_lora_weights.safetensors")


def test_a_mix_trains_as_what_it_is_made_of(tiny_sd, tmp_path):
    """A reward in halves: .5 r + .5 r = r, so paths, advantages and adapters are the same bit for bit. One whose parts
    are r and, normalised, (r + 1) / 2 with the weight 2 is 2 r + 1: another score and, up to the 1e-6 beside a spread
    of about .004, the same advantages."""
    half, turned = 'reward = "compressibility"\nweight = 0.5', 'reward = "compressibility"\nweight = 2.0'
    plain = learned("ddpo", tiny_sd, tmp_path / "plain", {"name": "compressibility"}, advantage="batch")
    halves = learned("ddpo", tiny_sd, tmp_path / "halves", mix(tmp_path, half, half), advantage="batch")
    assert [row["reward"] for row in halves] == [row["reward"] for row in plain]
    one, other = adapter(tmp_path / "plain"), adapter(tmp_path / "halves")
    assert all(torch.equal(one[name], other[name]) for name in one)
    parts = ('reward = "compressibility"', turned + '\nnormalise = "minmax"\nlow = -1.0\nhigh = 1.0')
    moved = learned("ddpo", tiny_sd, tmp_path / "moved", mix(tmp_path, *parts), advantage="batch")
    assert moved[0]["reward"] == pytest.approx(2 * plain[0]["reward"] + 1, rel=1e-5)
    assert moved[0]["advantage_size"] == pytest.approx(plain[0]["advantage_size"], rel=1e-3)


def test_every_part_of_a_mix_has_its_own_margin(tiny_sd, tmp_path):
    """Parts r and (r + 1) / 2 with margins 3 and 2 are nowhere good enough, so a row's loss is 3 - r + 2 - (r + 1) / 2,
    or 1.5 (3 - r): one and a half times that of a hinge at 3. So is the gradient."""
    parts = ('reward = "shapes_clip"', 'reward = "shapes_clip"\nnormalise = "minmax"\nlow = -1.0\nhigh = 1.0')
    hinge = {"shape": "hinge", "margin": 3.0, "scale": 1.0}
    aspects = {"shape": "aspects", "margins": [3.0, 2.0], "scale": 1.0}
    one = learned("refl", tiny_sd, tmp_path / "hinge", {"name": "shapes_clip"}, objective=hinge)
    both = learned("refl", tiny_sd, tmp_path / "aspects", mix(tmp_path, *parts), objective=aspects)
    assert both[0]["loss"] == pytest.approx(1.5 * one[0]["loss"], rel=1e-5)
    assert both[0]["grad_norm"] == pytest.approx(1.5 * one[0]["grad_norm"], rel=1e-3)


def test_looks_of_low_variance_train(tiny_sd, tmp_path):
    """Two more looks at each finished image: its own reward is the same at the first step, the loss and its gradient
    are those of all three looks."""
    reward = mix(tmp_path, 'reward = "shapes_clip"')
    alone = learned("draft", tiny_sd, tmp_path / "alone", reward)
    looks = learned("draft", tiny_sd, tmp_path / "looks", reward, noisings=2)
    assert looks[0]["reward"] == alone[0]["reward"] and looks[0]["steps_with_gradient"] == 1
    assert looks[0]["loss"] != alone[0]["loss"] and looks[0]["grad_norm"] != alone[0]["grad_norm"]
    assert alone[0]["loss"] == pytest.approx(-alone[0]["reward"], rel=1e-6), "without more looks it is the reward's"


def test_scores_of_a_set_are_normalised_as_a_mix_would_by_the_sets_spread():
    """(s - mean) / std in both rooms, up to the 1e-6 beside a std of about 3, and 0 where all are equal."""
    scores = torch.tensor([1.0, 4.0, -2.0, 5.0, 20.0 / 3])
    for given in (scores, torch.full((5,), 0.3)):
        column, everybody = given[:, None], torch.zeros(5, dtype=torch.long)
        expected = normalise(column, ["zscore"], group_spread(column, everybody))[:, 0]
        torch.testing.assert_close(by_batch(given), expected, rtol=1e-6, atol=1e-6)
