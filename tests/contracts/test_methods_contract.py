"""Every method in the house against the laws that all of them obey, on batches of the training room itself.

The list is what the folder holds, by what each eats: a new file in ``visfeedback/methods`` needs nothing here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy
import pytest
from PIL import Image
from toy_training import Brightness, toy_settings

from visfeedback import plugins, rewards
from visfeedback.training.fit import fit
from visfeedback.training.run import Run, read_metrics
from visfeedback.training.setup import prepare
from visfeedback.types.protocols import silent
from visfeedback.types.records import Frozen

METHODS = plugins.names("methods")
PAIRWISE = {"dpo", "d3po"}
"""whose loss is -logsigmoid of a margin that is 0 while policy = reference"""
KINDS = {"pairs", "scored", "rollouts", "prompts"}


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory) -> Path:
    """Two pairs of one image each side."""
    folder, random, rows = tmp_path_factory.mktemp("pairs"), numpy.random.default_rng(0), []
    for i in range(4):
        for side in "ab":
            Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=numpy.uint8)).save(folder / f"{i}{side}.png")
        rows.append({"prompt": f"p{i // 2}", "image_a": f"{i}a.png", "image_b": f"{i}b.png", "label": "a"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


@pytest.fixture
def toy(tiny_sd, pairs_file, monkeypatch):
    """``toy("dpo", optim={...})``: settings of a method, with pairs if it eats them."""
    monkeypatch.setattr(rewards, "load", lambda name, device="cpu", dtype="fp32": Brightness())

    def build(name: str, **changes):
        if plugins.load("methods", name).Method.eats == "pairs":
            changes = {"data": {"pairs": str(pairs_file)}, **changes}
        return toy_settings(name, tiny_sd, **changes)

    return build


def test_all_kinds_of_batches_are_eaten():
    eaten = {plugins.load("methods", name).Method.eats for name in METHODS}
    assert eaten == KINDS, "the room of training feeds four kinds; a kind that nobody eats is dead"


@pytest.mark.parametrize("name", METHODS)
def test_every_knob_is_explained(name):
    method = plugins.load("methods", name).Method
    assert method.__doc__ and plugins.load("methods", name).__doc__
    for knob, field in method.model_fields.items():
        section = isinstance(field.annotation, type) and issubclass(field.annotation, Frozen)  # has words of its own
        assert section or field.description, f"{name}.{knob} has no words under it"
    assert method() == method(), "every knob has a default"


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_a_number_whose_gradient_reaches_the_adapter_alone(toy, tmp_path, name):
    setup = prepare(toy(name), Run(tmp_path), False, silent)
    stepper, backbone = setup.stepper, setup.backbone
    for micro in range(min(2, stepper.batches.calls)):
        loss, metrics = stepper.loss(stepper.batches.batch(0, micro), stepper.context(0, 0, micro))
        assert loss.shape == () and math.isfinite(loss.item())
        assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values()), metrics
        loss.backward()
    trained = {id(parameter) for parameter in backbone.parameters()}
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())
    for network in (backbone.pipe.unet, backbone.pipe.vae, backbone.pipe.text_encoder):
        assert all(p.grad is None for p in network.parameters() if id(p) not in trained)


@pytest.mark.parametrize("name", sorted(PAIRWISE & {*METHODS}))
def test_pairwise_losses_begin_at_ln_2(toy, tmp_path, name):
    fit(toy(name, optim={"steps": 1}), tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


FED = [name for name in METHODS if plugins.load("methods", name).Method.eats != "prompts"]
"""Methods that draw by themselves draw once a batch: where the gradient begins, what is compared."""


@pytest.mark.parametrize("name", FED)
def test_accumulating_is_the_same_as_a_larger_batch(toy, tmp_path, name):
    """1 x 4 = 2 x 2: the gradient of the first step, before any difference could grow."""
    norms = []
    for size, accumulate in ((4, 1), (2, 2)):
        wanted = toy(name, optim={"batch_size": size, "accumulate": accumulate, "steps": 1})
        fit(wanted, tmp_path / str(size))
        norms.append(read_metrics(tmp_path / str(size) / "metrics.jsonl")[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("name", METHODS)
def test_resume_equals_uninterrupted(toy, tmp_path, monkeypatch, name):
    """Killed in step 3 of 3, in the middle of a round: the same bits, and no step twice in the metrics."""
    from visfeedback.training.step import Stepper

    wanted = toy(name, optim={"steps": 3}, rollout={"every": 3})
    fit(wanted, tmp_path / "whole")
    step = Stepper.step

    def dies(self, number, stop):
        if number == 2:
            raise Killed
        return step(self, number, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", dies)
        with pytest.raises(Killed):
            fit(wanted, tmp_path / "cut")
    fit(wanted, tmp_path / "cut", resume=True)
    weights = "checkpoints/step-3/adapter.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "cut" / weights).read_bytes()
    rows = [read_metrics(tmp_path / part / "metrics.jsonl") for part in ("whole", "cut")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


@pytest.mark.parametrize("name", METHODS)
def test_the_presets_fit(name):
    """Every TOML of the method is a valid run, and SD 1.5 and the shapes world have one."""
    from visfeedback.config import build, read_toml
    from visfeedback.training.openers import kind_of
    from visfeedback.training.settings import settings_for

    folder = Path(__file__).parents[2] / "configs" / name
    found = sorted(path.stem for path in folder.glob("*.toml"))
    assert {"sd15", "shapes_sd"} <= set(found), f"configs/{name} has {found}"
    for path in folder.glob("*.toml"):
        settings = build(settings_for(name), read_toml(path), str(path))
        assert kind_of(settings) in ("pairs", "images", "prompts", "paths")
