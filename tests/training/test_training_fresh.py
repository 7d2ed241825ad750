"""Batches of what the policy makes: fresh paths, fresh and stored scored images, prompts; what goes wrong with them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_training import ROLLOUT

from visfeedback.plugins import InputError
from visfeedback.training.fit import fit
from visfeedback.training.rounds import Rounds
from visfeedback.training.run import Run, read_metrics
from visfeedback.training.setup import prepare
from visfeedback.types.protocols import silent
from visfeedback.types.records import Origin

CLOCKS = ("seconds", "step_seconds")


def source_of(settings, folder):
    return prepare(settings, Run(folder), False, silent)


# what a run leaves


def test_a_run_of_fresh_paths(online, tmp_path):
    """2 prompts x 2 images = 2 steps of 2 images a round; 4 steps are 2 rounds, 8 images, each used once."""
    summary = fit(online("ddpo", reward={"watch": "other"}, engine={"drift_every": 2}), tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["images_seen"] for row in rows] == [2, 4, 6, 8]
    assert [row["images_made"] for row in rows] == [4, 4, 8, 8]
    assert rows[0]["reward"] == rows[1]["reward"] == rows[0]["watched_reward"] != rows[2]["reward"]
    assert [row["ratio_off"] < 1e-5 for row in rows] == [True, False, True, False], "1 before a round's first update"
    assert "drift" in rows[1] and summary["drift"] > 0 and summary["images_made"] == 8
    assert [json.loads(line)["text"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()] == ROLLOUT[
        "prompts"
    ]
    for name in ("card.md", "report.html"):
        assert "images it drew of 3 prompts, scored by brightness" in (tmp_path / name).read_text()


@pytest.mark.parametrize("method", ["d3po", "raft", "rwr", "draft"])
def test_every_kind_of_batch_trains(online, tmp_path, method):
    """rollouts, scored and prompts: the adapter moves, the loss is a number, images are counted."""
    summary = fit(online(method, rollout={"shared_noise": True}, optim={"steps": 2}), tmp_path)
    weights = load_file(tmp_path / "adapter/pytorch_lora_weights.safetensors")
    assert any(value.abs().sum() > 0 for name, value in weights.items() if "lora_B" in name)
    assert summary["images_seen"] == 4 and summary["loss"] == summary["loss"]


# the stream


def test_a_call_is_one_step_of_some_paths(online, tmp_path):
    """3 steps x accumulate 2 = 6 calls; together they hold every (image, step) of the round once."""
    setup = source_of(online("ddpo", optim={"accumulate": 2, "batch_size": 2}), tmp_path)
    batches = setup.stepper.batches
    assert batches.calls == 6
    seen = [batches.batch(0, micro) for micro in range(6)]
    assert all(batch.latents.shape == (2, 2, 4, 8, 8) and batch.share == 1 for batch in seen)
    drawn = batches.supply.of(0)
    found = {
        (round(t, 6), x.sum().item()) for b in seen for t, x in zip(b.t[:, 0].tolist(), b.latents[:, 0], strict=True)
    }
    expected = {
        (round(drawn.paths.t[k].item(), 6), drawn.paths.latents[row, k].sum().item())
        for row in range(4)
        for k in range(3)
    }
    assert found == expected


def test_some_steps_of_a_part_of_the_schedule(online, tmp_path):
    """times (0.5, 1]: of t = .67, .34, .00 (3 leading steps: 666, 333, 0, +1 twice) one; train_steps: so many."""
    high = source_of(online("ddpo", rollout={"times": [0.5, 1.0]}), tmp_path / "a").stepper.batches
    assert high.learned == [0] and high.calls == 1
    few = source_of(online("ddpo", rollout={"train_steps": 2}), tmp_path / "b").stepper.batches
    assert few.calls == 2
    picked = [tuple(few.batch(step, micro).t[0, 0].item() for micro in range(2)) for step in range(6)]
    assert len(set(picked)) > 1, "other steps at other times"
    with pytest.raises(InputError, match=r"--rollout\.times 0 1"):
        source_of(online("ddpo", rollout={"times": [0.4, 0.5]}), tmp_path / "c")


def test_images_of_weight_0_cost_nothing(online, tmp_path):
    """Weights (0, w, 0, 0): calls shrink to one row, a quarter of those planned."""
    batches = source_of(online("ddpo", optim={"batch_size": 4}), tmp_path).stepper.batches
    drawn = batches.supply.of(0)
    drawn.weight.copy_(torch.tensor([0.0, 1.5, 0.0, 0.0]))
    batch = batches.batch(0, 0)
    assert batch.weight.tolist() == [1.5] and batch.share == 0.25
    drawn.weight.zero_()
    assert len(batches.batch(0, 1).weight) == 1, "something is left to call the network with"


@pytest.mark.parametrize(("method", "knobs", "rows"), [("ddpo", {}, 1), ("ddpo", {"kl": 1.0}, 4), ("d3po", {}, 2)])
def test_the_gradient_is_as_if_images_of_weight_0_were_there(online, tmp_path, method, knobs, rows):
    """DDPO: advantages (0, 1.5, 0, 0), so one row is left, except where a pull to the reference needs all; D3PO: scores
    (1, 1 | 0, 3), so a group of two is left. Away from the reference, against all four images in every call."""
    setup = source_of(online(method, method={"name": method, **knobs}, optim={"batch_size": 4}), tmp_path)
    backbone, stepper, batches = setup.backbone, setup.stepper, setup.stepper.batches
    drawn, parameters = batches.supply.of(0), list(backbone.parameters())
    drawn.scores.copy_(torch.tensor([1.0, 1.0, 0.0, 3.0]))
    drawn.weight.copy_(torch.tensor([0.0, 1.5, 0.0, 0.0]))
    if method == "d3po":
        drawn.weight.copy_(setup.settings.method.weigh(drawn.scores, drawn.group, [], {}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    assert len(batches.batch(0).weight) == rows and batches.batch(0).share == rows / 4
    whole = [drawn.rollouts(range(4), batches.walk, step) for step in batches.learned]
    losses = [setup.settings.method.loss(backbone, batch, stepper.context(0, 0))[0] for batch in whole]
    expected = torch.autograd.grad(torch.stack(losses).mean(), parameters)
    for micro in range(batches.calls):
        stepper.backward(0, micro)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-6


def test_groups_stay_whole(online, tmp_path):
    batches = source_of(
        online("d3po", rollout={"prompts_per_round": 3}, optim={"batch_size": 2}), tmp_path
    ).stepper.batches
    groups = [batches.batch(step).group.tolist() for step in range(3)]
    assert sorted(groups) == [[0, 0], [1, 1], [2, 2]]
    assert batches.batch(0).reference_log_prob.shape == (2, 1)


def test_accumulating_is_the_same_as_a_larger_batch(online, tmp_path):
    """1 x 4 = 2 x 2: the same paths and steps, the gradient is their mean either way."""
    norms = []
    for size, accumulate in ((4, 1), (2, 2)):
        wanted = online("ddpo", optim={"batch_size": size, "accumulate": accumulate, "steps": 1})
        fit(wanted, tmp_path / str(size))
        norms.append(read_metrics(tmp_path / str(size) / "metrics.jsonl")[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_fresh_images_are_what_a_stock_pipeline_draws(online, tmp_path):
    """The round's images are those of pipe(...) with the plan's seeds."""
    setup = source_of(online("ddpo"), tmp_path)
    supply = setup.stepper.batches.supply
    plan, drawn = supply.plan(0), supply.of(0)
    stock = setup.backbone.pipe(
        prompt=[p.text for p, *_ in plan], num_inference_steps=3, guidance_scale=2.0, eta=1.0, output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for _, _, seed, *_ in plan],
    ).images  # fmt: skip
    torch.testing.assert_close(drawn.paths.images, stock, rtol=1e-3, atol=1e-4)
    assert len({seed for number in range(4) for _, _, seed, *_ in supply.plan(number)}) == 16, "never the same twice"


@pytest.mark.parametrize(("overlap", "model"), [("on", "program"), ("auto", "http://host")])
def test_scoring_while_drawing_gives_the_same_scores(online, tmp_path, reward, monkeypatch, overlap, model):
    """The first batch is being scored while the second one is drawn: each waits there for the other, and gives up after
    a minute. `auto` does so on a CPU for a server's sake."""
    alone = source_of(online("ddpo", rollout={"overlap": "off", "micro_batch": 2}), tmp_path / "off")
    expected = alone.stepper.batches.supply.of(0).scores
    meeting, roll, drawn = threading.Barrier(2, timeout=60), Rounds._roll, []

    def meet(scores):
        if reward.asked == 1:
            meeting.wait()
        return scores

    def drawing(self, part, texts):
        drawn.append(part)
        if len(drawn) == 2:
            meeting.wait()
        return roll(self, part, texts)

    reward.asked, reward.spoil, reward.origin = 0, meet, Origin(model=model)
    monkeypatch.setattr(Rounds, "_roll", drawing)
    wanted = online("ddpo", rollout={"overlap": overlap, "micro_batch": 2}, reward={"retries": 0})
    assert torch.equal(source_of(wanted, tmp_path / "on").stepper.batches.supply.of(0).scores, expected)
    assert len(drawn) == reward.asked == 2


def test_scores_by_prompt_and_batch(online, tmp_path):
    """`batch`: mean 0, spread 1 over the round."""
    drawn = source_of(online("rwr", reward={"normalise": "batch"}), tmp_path).stepper.batches._sets.of(0)
    assert drawn.scores.mean().abs() < 1e-5 and drawn.scores.std(correction=0) == pytest.approx(1, abs=1e-2)


# stored images


def write_images(folder: Path, scores=(0.1, 0.9, 0.5, 0.7)) -> Path:
    import numpy
    from PIL import Image

    random, rows = numpy.random.default_rng(0), []
    for i, score in enumerate(scores):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=numpy.uint8)).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": f"p{i // 2}", **({} if score is None else {"score": score})})
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "images.jsonl"


def test_stored_images_bring_their_scores(online, tmp_path, reward):
    """Scores of the file are weights as they are (rwr, reward); real images come along; the reward is not asked."""
    file = write_images(tmp_path)
    wanted = online("rwr", method={"weighting": "reward"}, data={"images": str(file), "real": str(file)},
                    reward={"name": ""})  # fmt: skip
    summary = fit(wanted, tmp_path / "run")
    assert reward.asked == 0 and summary["images"] == 4 and "images_made" not in summary
    assert summary["reward"] == pytest.approx(0.55) and "error_real" in read_metrics(tmp_path / "run/metrics.jsonl")[0]
    batch = source_of(wanted, tmp_path / "b").stepper.batches.batch(0)
    assert torch.equal(batch.scores, batch.weight) and batch.real is not None and len(batch.real.weight) == 2


def test_the_best_of_stored_images_are_learned(online, tmp_path):
    """raft keeps one of each prompt's two: 1 and 3. The stream never shows another."""
    wanted = online("raft", data={"images": str(write_images(tmp_path))}, reward={"name": ""})
    setup = source_of(wanted, tmp_path / "run")
    scores = {round(score, 4) for step in range(6) for score in setup.stepper.batches.batch(step).scores.tolist()}
    assert scores == {0.9, 0.7} and setup.source.summary(0)["images_with_weight"] == 2


def test_stored_images_are_scored_once(online, tmp_path, reward):
    file = write_images(tmp_path, (None,) * 4)
    with pytest.raises(InputError, match=r"0\.png has no score; name a reward"):
        fit(online("rwr", data={"images": str(file)}, reward={"name": ""}), tmp_path / "none")
    wanted = online("rwr", data={"images": str(file)})
    fit(wanted, tmp_path / "run")
    asked = reward.asked
    fit(wanted, tmp_path / "run", resume=True)
    assert reward.asked == asked, "a table holds them"


def test_folders_with_notes_and_opinions_of_a_store(tmp_path):
    from visfeedback.training.images import load_images, opinions
    from visfeedback.training.settings import Data
    from visfeedback.types.records import Feedback

    write_images(tmp_path)
    (tmp_path / "images.jsonl").unlink()
    with pytest.raises(InputError, match=r"0\.png has no prompt; expected it in 0\.txt"):
        load_images(Data(images=str(tmp_path)), True)
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"text {i}\n")
    assert [picture.prompt for picture in load_images(Data(images=str(tmp_path)), True)] == [
        f"text {i}" for i in range(4)
    ]
    likes = [Feedback(kind="like", judge="human:a", sample_ids=("x",), values=(v,)) for v in (1.0, -1.0, 1.0)]
    pair = Feedback(kind="pair", judge="human:a", sample_ids=("x", "y"), values=(1.0, 0.0), choice="a")
    assert opinions([*likes, pair]) == {"x": pytest.approx(0.5), "y": -1.0}
    with pytest.raises(InputError, match="no common scale"):
        opinions([*likes, Feedback(kind="rating", judge="human:a", sample_ids=("x",), values=(4.0,))])


# what goes wrong


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout": {"eta": 0.0}}, "rollout.eta = 0 leaves no randomness.*--rollout.eta 1"),
        (
            {"rollout": {"per_prompt": 1, "prompts_per_round": 4}},
            "d3po compares images of a prompt and needs 2 or more",
        ),
        ({"rollout": {"prompts": []}}, "nothing to draw: give --rollout.prompts"),
        ({"reward": {"name": ""}}, "needs somebody who scores.*--reward.name"),
        ({"lora": {"dropout": 0.1}}, "--lora.dropout 0"),
        ({"optim": {"batch_size": 3}}, "cuts groups of 2 images.*--optim.batch-size"),
        ({"rollout": {"prompts_per_round": 3}, "optim": {"batch_size": 4}}, "no whole number of steps of 4"),
    ],
)
def test_settings_that_cannot_work(online, tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        fit(online("d3po", **changes), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run/config.toml").exists()


def test_a_reward_without_gradient_is_refused_where_one_is_needed(online, tmp_path, reward):
    reward.differentiable = False
    with pytest.raises(InputError, match="gradient"):
        fit(online("draft"), tmp_path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda scores: scores * float("nan"), "gave nan to an image of"),
        (lambda scores: scores[:, None], r"returned scores of shape \(4, 1\) for 4 images; expected \(4,\)"),
        (lambda scores: scores * 0 + 3, "gave 3 to all of 4 images, so nothing can be learned"),
    ],
)
def test_a_reward_that_is_none(online, tmp_path, reward, spoil, words):
    reward.spoil = spoil
    with pytest.raises(InputError, match=words) as caught:
        fit(online("ddpo"), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_server_that_goes_away_leaves_the_state_saved(online, tmp_path, reward):
    """It answers the first round, then never: 1 + 2 attempts, step 2 is saved, and later the run ends as if nothing had
    happened."""

    def gone(scores):
        if reward.asked > 1:
            raise ConnectionError("connection refused\nsecond line")
        return scores

    wanted = online("ddpo", reward={"retries": 2}, engine={"checkpoint_every": 0})
    reward.origin, reward.spoil = Origin(model="http://host"), gone
    with pytest.raises(
        InputError, match=r"does not answer \(3 attempts\): connection refused; step 2 is saved"
    ) as caught:
        fit(wanted, tmp_path / "run")
    assert "\n" not in str(caught.value) and reward.asked == 4
    reward.spoil = lambda scores: scores
    fit(wanted, tmp_path / "run", resume=True)
    fit(wanted, tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole", 4)


def test_a_run_stops_where_it_drifts_too_far(online, tmp_path):
    """It ends like a finished one, says why, and resuming changes nothing."""
    wanted = online("ddpo", optim={"lr": 0.3}, engine={"drift_every": 1, "stop_drift": 1e-6})
    summary = fit(wanted, tmp_path)
    assert summary["steps"] == 1 and "engine.stop_drift = 1e-06" in summary["stopped"]
    assert "Stopped early" in (tmp_path / "report.html").read_text()
    assert {**fit(wanted, tmp_path, resume=True), "peak_mib": 0} == {**summary, "peak_mib": 0}


# resuming


class Killed(BaseException):
    """Stands for kill -9."""


def assert_same(a: Path, b: Path, steps: int) -> None:
    name = f"checkpoints/step-{steps}/adapter.safetensors"
    assert (a / name).read_bytes() == (b / name).read_bytes()
    rows = [
        [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_metrics(x / "metrics.jsonl")] for x in (a, b)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("method", "at"), [("ddpo", 1), ("ddpo", 2), ("ddpo", 3), ("d3po", 3), ("raft", 3), ("draft", 2)]
)
def test_resume_equals_uninterrupted(online, tmp_path, monkeypatch, method, at):
    """Rounds of 2 steps, killed in step ``at`` and resumed from the checkpoint before: in the middle of a round (1, 3)
    its images come out of the checkpoint, at its end (2) they are drawn anew; statistics by prompt go on."""
    from visfeedback.training.step import Stepper

    wanted = online(method, rollout={"every": 2}, reward={"normalise": "prompt"}, engine={"ema": {"decay": 0.9}})
    fit(wanted, tmp_path / "whole")
    step = Stepper.step

    def dies(self, number, stop):
        if number == at:
            raise Killed
        return step(self, number, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", dies)
        with pytest.raises(Killed):
            fit(wanted, tmp_path / "cut")
    stored = tmp_path / f"cut/checkpoints/step-{at}/source-0.pt"
    if method != "draft":
        saved = torch.load(stored, weights_only=True)
        assert bool(saved["round"]) == (at % 2 == 1)
    fit(wanted, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut", 4)
