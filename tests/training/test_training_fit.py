"""The loop: laws of a whole run on a tiny real model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from visfeedback.plugins import InputError
from visfeedback.training.fit import fit, summarize
from visfeedback.training.run import read_metrics

ADAPTER = Path("adapter/pytorch_lora_weights.safetensors")


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / ADAPTER)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_a_run_leaves_its_folder(settings, tmp_path):
    summary = fit(settings(eval={"count": 2}), tmp_path / "run", command="visfeedback train X --out Y")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "adapter", "cache", "card.md", "checkpoints", "config.toml", "environment.json", "metrics.jsonl", "pairs.jsonl",
        "report.html", "samples", "summary.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "run/summary.json").read_text()) == summary
    assert summary["steps"] == 4 and summary["pairs"] == 5 and summary["images_seen"] == 16
    assert summary["conventions"]["beta_diffusers"] == 1000
    assert {p.name for p in (tmp_path / "run/samples").iterdir()} == {"step-0", "step-4"}
    assert "visfeedback train X --out Y" in (tmp_path / "run/report.html").read_text()
    report = (tmp_path / "run/report.html").read_text()
    assert "optim.batch_size" in report and "optim.schedule" not in report, "only what differs from the defaults"
    card = (tmp_path / "run/card.md").read_text()
    assert "base_model:" in card and "load_lora_weights" in card


def test_the_first_loss_is_ln_2_and_every_step_is_logged(settings, tmp_path):
    """Before the first update policy = reference, with the reference's errors out of the table."""
    fit(settings(engine={"drift_every": 2}), tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["loss"] != rows[0]["loss"]
    assert ["drift" in row for row in rows] == [False, True, False, True]
    assert 0 < rows[1]["drift"] < 1
    assert [row["images_seen"] for row in rows] == [4, 8, 12, 16]
    assert {"lr", "seconds", "grad_norm", "implicit_accuracy", "error_winner", "reference_error_loser"} <= set(rows[0])


def test_the_adapter_loads_in_stock_diffusers_and_changes_the_image(settings, tiny_sd, tmp_path):
    from diffusers import StableDiffusionPipeline

    fit(settings(optim={"lr": 1e-2}), tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe("prompt 0", num_inference_steps=3, generator=generator, output_type="np").images[0]

    base = draw()
    pipe.load_lora_weights(str(tmp_path / "adapter"))
    tuned = draw()
    assert abs(tuned - base).max() > 1e-4


def test_eight_small_batches_equal_one_large(settings, tmp_path):
    """1x8 = 8x1: the gradient of a mean is the mean of the gradients. SGD-like check after one AdamW step would hide
    scale, so the gradient norm is compared too."""
    fit(settings(optim={"batch_size": 8, "accumulate": 1, "steps": 2}), tmp_path / "one")
    fit(settings(optim={"batch_size": 1, "accumulate": 8, "steps": 2}), tmp_path / "eight")
    one, eight = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "eight"))
    for a, b in zip(one, eight, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert a["error_winner"] == pytest.approx(b["error_winner"], rel=1e-5)
    assert distance(adapter(tmp_path / "one"), adapter(tmp_path / "eight")) < 2e-4


@pytest.mark.parametrize("cache", ["moments", "text", "reference"])
def test_a_cache_changes_nothing(settings, tmp_path, cache):
    """Live and stored rows are the same numbers, so losses agree to 1e-6 over the first steps."""
    changes = {"data": {"prompt_drop": 0.5, "flip": True}, "optim": {"steps": 2}}
    fit(settings(**changes), tmp_path / "stored")
    fit(settings(**changes, engine={"cache": {cache: False}}), tmp_path / "live")
    stored, live = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("stored", "live"))
    for name in ("loss", "error_winner", "error_loser", "reference_error_winner", "reference_error_loser"):
        assert [row[name] for row in stored] == pytest.approx([row[name] for row in live], rel=1e-5, abs=1e-6)
    assert not list((tmp_path / "live/cache").glob(f"{cache}-*"))


def test_the_reference_never_runs_in_the_loop_when_its_errors_are_cached(settings, tmp_path, monkeypatch):
    """2 draws x 5 pairs in calls of 2 fill the table; then 4 steps; then the drift: 4 draws on 4 images."""
    from visfeedback.backbones.sd import SD

    calls: list[str] = []
    predict = SD.predict

    def counted(self, x_t, t, condition):
        calls.append(self._active)
        return predict(self, x_t, t, condition)

    monkeypatch.setattr(SD, "predict", counted)
    fit(settings(), tmp_path)
    assert calls == ["reference"] * 5 + ["policy"] * 4 + ["policy", "reference"] * 4


def test_starting_from_an_adapter_makes_it_the_reference(settings, tmp_path):
    """ln 2 again at the first step, and drift is measured from the starting point."""
    fit(settings(optim={"lr": 1e-2}), tmp_path / "first")
    start = settings(model={"adapter": str(tmp_path / "first/adapter")}, engine={"drift_every": 1})
    fit(start, tmp_path / "second")
    rows = read_metrics(tmp_path / "second/metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert distance(adapter(tmp_path / "first"), adapter(tmp_path / "second")) > 0
    fresh = read_metrics(tmp_path / "first/metrics.jsonl")
    assert rows[0]["error_winner"] != fresh[0]["error_winner"], "the start is the tuned network"


def test_the_running_average_is_what_is_saved(settings, tmp_path):
    """decay .5 every step from a0: e = a0/16 + a1/16 + a2/8 + a3/4 + a4/2, so it lies between start and end."""
    fit(settings(engine={"ema": {"decay": 0.5}, "checkpoint_every": 1, "keep": 9}), tmp_path)
    steps = [load_file(tmp_path / f"checkpoints/step-{n}/adapter.safetensors") for n in (1, 2, 3, 4)]
    name = next(name for name in steps[0] if "lora_B" in name)  # B starts at 0
    expected = sum(weight * step[name] for weight, step in zip((1 / 16, 1 / 8, 1 / 4, 1 / 2), steps, strict=True))
    average = load_file(tmp_path / "checkpoints/step-4/ema.safetensors")[name]
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-8)
    saved = next(value for key, value in adapter(tmp_path).items() if key.endswith(name))
    torch.testing.assert_close(saved, average)


def test_log_every_averages_steps(settings, tmp_path):
    fit(settings(), tmp_path / "each")
    fit(settings(engine={"log_every": 3}), tmp_path / "some")
    each, some = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("each", "some"))
    assert [row["step"] for row in some] == [3, 4]
    assert some[0]["loss"] == pytest.approx(sum(row["loss"] for row in each[:3]) / 3)
    assert some[0]["images_seen"] == each[2]["images_seen"]


def test_summarize_takes_means_and_newest():
    window = [{"loss": 1.0, "lr": 1.0}, {"loss": 3.0, "lr": 2.0, "drift": 0.5}]
    assert summarize(window) == {"loss": 2.0, "lr": 2.0, "drift": 0.5}


def test_held_out_pairs_are_not_trained_on(settings, tmp_path):
    fit(settings(data={"holdout": 0.34}, engine={"drift_every": 2}), tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["pairs"] + summary["pairs_held_out"] == 5 and summary["pairs_held_out"] > 0
    assert "holdout_implicit_accuracy" in rows[1] and "holdout_loss" not in rows[0]


def test_a_loss_that_is_no_number_stops_the_run_with_its_state_saved(settings, tmp_path):
    """Learning rate 1e30: step 1 is fine (ln 2), its update destroys the weights, step 2 is NaN."""
    with pytest.raises(InputError, match=r"step 2; the state before it is in .*step-1.* --optim\.lr"):
        fit(settings(optim={"lr": 1e30}), tmp_path)
    assert (tmp_path / "checkpoints/step-1/state.json").exists()
    assert not (tmp_path / "summary.json").exists()


def test_dropout_and_checkpointing_train(settings, tmp_path):
    summary = fit(settings(lora={"dropout": 0.3}, engine={"gradient_checkpointing": True}), tmp_path)
    assert summary["steps"] == 4


def test_gradient_checkpointing_gives_the_same_run(settings, tmp_path):
    fit(settings(), tmp_path / "plain")
    fit(settings(engine={"gradient_checkpointing": True}), tmp_path / "less")
    assert distance(adapter(tmp_path / "plain"), adapter(tmp_path / "less")) < 1e-5


def test_bf16_autocast_is_close(settings, tmp_path):
    summary = fit(settings(engine={"mixed_precision": "bf16"}), tmp_path)
    assert summary["loss"] == pytest.approx(math.log(2), abs=0.2)
    assert all(value.dtype == torch.float32 for value in adapter(tmp_path).values())


def test_random_state_and_threads_of_the_caller_are_left_alone(settings, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = torch.get_rng_state()
        fit(settings(engine={"threads": 1}, optim={"steps": 1}), tmp_path)
        assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert json.loads((tmp_path / "environment.json").read_text())["threads"] == 1


def test_a_missing_tracker_names_the_extra(settings, tmp_path):
    with pytest.raises(InputError, match=r"visfeedback\[trackers\]"):
        fit(settings(engine={"trackers": ["trackio"]}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_model_is_one_line_and_leaves_nothing(settings, tmp_path):
    from safetensors.torch import save_file

    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    state = {f"{name}.lora_A.weight": torch.zeros(2, 999), f"{name}.lora_B.weight": torch.zeros(999, 2)}
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(InputError, match="another model"):
        fit(settings(model={"adapter": str(tmp_path)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_weights_are_the_same_file(settings, tmp_path):
    """Two runs of one seed: byte for byte, so that the adapter's fingerprint names its weights."""
    fit(settings(optim={"steps": 1}), tmp_path / "a")
    fit(settings(optim={"steps": 1}), tmp_path / "b")
    assert (tmp_path / "a" / ADAPTER).read_bytes() == (tmp_path / "b" / ADAPTER).read_bytes()


def test_groups_train_from_tables_as_they_do_live(settings, tmp_path):
    """Grouped batches bring the reference's errors of their own draws: ln 2 first, and live errors agree."""
    grouped = {"data": {"group": True}, "optim": {"steps": 3, "batch_size": 3}}
    fit(settings(**grouped), tmp_path / "stored")
    fit(settings(**grouped, engine={"cache": {"reference": False, "moments": False}}), tmp_path / "live")
    stored, live = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("stored", "live"))
    assert stored[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # other batch shapes, so other last bits
    assert [row["loss"] for row in stored] == pytest.approx([row["loss"] for row in live], rel=1e-3)
