"""D3PO and DDPO learn in the shapes world: a taste that no prompt mentions shows in pictures of unseen prompts."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from toy_training import Darkness, toy_settings

from visfeedback import rewards, shapes
from visfeedback.backbones.load import load_pipeline
from visfeedback.evaluation.statistics import bootstrap
from visfeedback.sampling.render import GenerateSettings, render
from visfeedback.training.fit import fit
from visfeedback.training.run import read_metrics

PROMPTS = [
    "a circle",
    "a square",
    "a triangle",
    "a cross",
    "two circles",
    "two squares",
    "two triangles",
    "two crosses",
]
DRAWING = GenerateSettings(steps=8, batch_size=32)
KNOBS = {
    "ddpo": {"advantage": "group", "spread": "batch", "clip": 0.05},
    "d3po": {"beta": 1.0, "clip": 0.2},
}
PACE = {
    "ddpo": {"prompts_per_round": 4, "epochs": 2, "lr": 6e-3},
    # Pairs count alike however far apart their scores are, so a round needs more of them and bears smaller steps.
    "d3po": {"prompts_per_round": 8, "epochs": 1, "lr": 3e-3},
}


@pytest.fixture
def one_thread():
    """Threads that wait for each other on a busy machine would make this many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def darkness(adapter: str, prompts: list[str]) -> numpy.ndarray:
    """Of one picture a prompt, always from the same seeds; 0 white to 1 black."""
    pipe = load_pipeline("shapes:sd", adapter=adapter, device="cpu").pipe
    images = render(pipe, prompts, range(len(prompts)), settings=DRAWING)
    return numpy.array([1 - numpy.asarray(image).mean() / 255 for image in images])


@pytest.mark.learning
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", sorted(KNOBS))
def test_dark_pictures_are_learned(method, tmp_path, monkeypatch, one_thread):
    """12 rounds of 32 pictures (D3PO: 24 of 64) of prompts that say nothing about the background: pictures of 32 other
    prompts get darker, by an interval above 0, and the reward rises from the first rounds to the last. The last
    denoising step is left out: it has hardly any noise, so its log-probability would drown those of the others."""
    pace = PACE[method]
    monkeypatch.setattr(rewards, "load", lambda name, device="cpu", dtype="fp32": Darkness())
    wanted = toy_settings(
        method, "shapes:sd", method=KNOBS[method],
        rollout={"prompts": PROMPTS, "prompts_per_round": pace["prompts_per_round"], "per_prompt": 8, "steps": 4,
                 "guidance": 1.0, "epochs": pace["epochs"], "micro_batch": 32, "times": [0.3, 1.0]},
        optim={"steps": 24, "batch_size": 8 * pace["prompts_per_round"], "lr": pace["lr"]},
        lora={"rank": 16, "targets": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]},
        engine={"checkpoint_every": 0},
    )  # fmt: skip
    fit(wanted, tmp_path)
    unseen = [p.text for p in shapes.prompts("heldout") if "background" not in p.text][:32]
    gain = darkness(str(tmp_path / "adapter"), unseen) - darkness("", unseen)
    found = bootstrap(gain, unseen)
    rows = [row["reward"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    (tmp_path / "gain.json").write_text(json.dumps([found.value, found.low, found.high]))  # for --basetemp
    assert found.low > 0 and sum(rows[-4:]) > sum(rows[:4])
