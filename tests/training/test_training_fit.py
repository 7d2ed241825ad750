"""The loop: laws of a whole run on a tiny real model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from visfeedback.plugins import InputError
from visfeedback.training import setup as setup_room
from visfeedback.training.data import load_pairs
from visfeedback.training.fit import fit, summarize
from visfeedback.training.monitor import Monitor
from visfeedback.training.pages import card
from visfeedback.training.policy import load_policy
from visfeedback.training.run import Run, read_metrics
from visfeedback.training.setup import prepare
from visfeedback.training.surroundings import isolated
from visfeedback.types.addresses import without_passwords
from visfeedback.types.locks import only_writer
from visfeedback.types.protocols import silent

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
    """Live and stored rows are the same numbers up to their last bits, so the first step agrees to 1e-6. (Later ones
    need not: Adam's first update is the sign of the gradient, also where the gradient is rounding.)"""
    changes = {"data": {"prompt_drop": 0.5, "flip": True}, "optim": {"steps": 3}}
    fit(settings(**changes, engine={"cache": {"draws": 1}}), tmp_path / "stored")
    fit(settings(**changes, engine={"cache": {"draws": 1, cache: False}}), tmp_path / "live")
    stored, live = (read_metrics(tmp_path / name / "metrics.jsonl")[0] for name in ("stored", "live"))
    for name in ("loss", "error_winner", "error_loser", "reference_error_winner", "reference_error_loser"):
        assert stored[name] == pytest.approx(live[name], rel=1e-5, abs=1e-6)
    found = [bool(list((tmp_path / name / "cache").glob(f"{cache}-*"))) for name in ("stored", "live")]
    assert found == [True, False]


@pytest.mark.parametrize(("group", "holdout"), [(False, 0.34), (True, 0.0)])
def test_a_table_of_the_reference_is_the_loop_to_the_bit(settings, tmp_path, group, holdout):
    """10 (pair, draw) in batches of 2 are the first 5 steps: the rows were computed in these very batches. Only from
    step 6 on, where they repeat in other company, may last bits differ. Held-out pairs keep to their batches, too."""
    changes = {"data": {"group": group, "prompt_drop": 0.5, "holdout": holdout}, "optim": {"steps": 6}}
    fit(settings(**changes, engine={"drift_every": 2, "cache": {"draws": 2}}), tmp_path / "stored")
    fit(settings(**changes, engine={"drift_every": 2, "cache": {"draws": 2, "reference": False}}), tmp_path / "live")
    assert len(list(tmp_path.glob("stored/cache/reference-*/*"))) == (2 if holdout else 1)
    count = 3 if holdout else 5  # 2 pairs of 5 are held out: 6 (pair, draw), 3 steps
    rows = [read_metrics(tmp_path / name / "metrics.jsonl")[:count] for name in ("stored", "live")]
    assert ("holdout_loss" in rows[0][1]) is bool(holdout)
    clocks = ("seconds", "step_seconds")
    assert [{k: v for k, v in row.items() if k not in clocks} for row in rows[0]] == [
        {k: v for k, v in row.items() if k not in clocks} for row in rows[1]
    ]


def test_tables_hold_what_the_run_reads_and_no_more(settings, tmp_path):
    """One step of one pair, and 2 pairs that are looked at: 3 of 5 pairs at most, and no row of the reference, for none
    would be read twice."""
    fit(settings(optim={"steps": 1, "batch_size": 1}), tmp_path)

    def rows(name):
        return sum(len(next(iter(load_file(f).values()))) for f in tmp_path.glob(f"cache/{name}-*/*.safetensors"))

    assert 2 <= rows("moments") <= 6 and 1 <= rows("text") <= 3 and rows("reference") == 0


def test_the_reference_never_runs_in_the_loop_when_its_errors_are_cached(settings, tmp_path, monkeypatch):
    """1 draw x 5 pairs in calls of 2 fill the table; then 4 steps; then the drift: 4 draws on 4 images. With new draws
    in every epoch no row would be read twice: then it runs in every step."""
    from visfeedback.backbones.sd import SD

    calls: list[str] = []
    predict = SD.predict

    def counted(self, x_t, t, condition):
        calls.append(self._active)
        return predict(self, x_t, t, condition)

    monkeypatch.setattr(SD, "predict", counted)
    fit(settings(engine={"cache": {"draws": 1}}), tmp_path / "again")
    assert calls == ["reference"] * 3 + ["policy"] * 4 + ["policy", "reference"] * 4
    calls.clear()
    fit(settings(), tmp_path / "new")
    assert calls == ["policy", "reference"] * 8


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


def test_a_bare_reference_and_a_changed_text_encoder_do_not_go_together(settings, tiny_sd, tmp_path):
    """Prompts are encoded once for policy and reference."""
    from peft import LoraConfig

    from visfeedback.backbones.load import load

    backbone = load(str(tiny_sd), device="cpu")
    backbone.add_lora(rank=2)
    backbone.pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="default")
    backbone.save_adapter(tmp_path)
    load_policy(settings(model={"adapter": str(tmp_path)}), "cpu")
    with pytest.raises(InputError, match=r'changes the text encoder.*take model.reference = "start"'):
        load_policy(settings(model={"adapter": str(tmp_path), "reference": "bare"}), "cpu")


def test_a_start_that_was_trained_with_dropout(settings, tmp_path):
    """The reference is the start without dropout, so policy = reference and the loss is ln 2 when this run has none;
    with dropout of this run it is not, and the reference stays what it is, in a table and live."""
    fit(settings(optim={"lr": 1e-2}, lora={"dropout": 0.5}), tmp_path / "first")
    rows = {}
    for name, dropout, cached in (("none", 0.0, True), ("live", 0.5, False), ("table", 0.5, True)):
        start = settings(
            model={"adapter": str(tmp_path / "first/adapter")}, optim={"steps": 3}, lora={"dropout": dropout},
            engine={"cache": {"draws": 1, "reference": cached}},
        )  # fmt: skip
        fit(start, tmp_path / name)
        rows[name] = read_metrics(tmp_path / name / "metrics.jsonl")[0]
    assert rows["none"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows["live"]["loss"] != pytest.approx(math.log(2), abs=1e-3)
    for name in ("reference_error_winner", "reference_error_loser"):
        assert rows["none"][name] == rows["live"][name] == rows["table"][name]


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


def test_the_running_average_is_what_is_measured_and_shown(settings, tiny_sd, tmp_path):
    """With a decay of nearly 1 the average is still the base model: no drift, and the picture of before."""
    knobs = {"optim": {"lr": 1e-2}, "eval": {"count": 1}}
    averaged = fit(settings(**knobs, engine={"ema": {"decay": 1 - 1e-9}}), tmp_path / "average")
    raw = fit(settings(**knobs), tmp_path / "raw")
    assert averaged["drift"] < 1e-9 < raw["drift"]
    before, after = ((tmp_path / "average/samples" / step / "00.png").read_bytes() for step in ("step-0", "step-4"))
    assert before == after != (tmp_path / "raw/samples/step-4/00.png").read_bytes()
    last = [load_file(tmp_path / name / "checkpoints/step-4/adapter.safetensors") for name in ("average", "raw")]
    assert distance(*last) == 0, "looking changes nothing"


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


def first_step(settings, folder, **changes) -> dict[str, float]:
    fit(settings(optim={"steps": 1}, **changes), folder)
    return read_metrics(folder / "metrics.jsonl")[0]


def test_dropout_acts(settings, tmp_path):
    """B = 0 at first, so the loss is ln 2 with any dropout, but the gradient is another one."""
    plain, dropped = (first_step(settings, tmp_path / str(p), lora={"dropout": p}) for p in (0.0, 0.5))
    assert plain["loss"] == pytest.approx(dropped["loss"], abs=1e-6)
    assert abs(plain["grad_norm"] / dropped["grad_norm"] - 1) > 0.01


def test_alpha_scales_the_update(settings, tmp_path):
    """The adapter adds alpha / rank * B A x: where B = 0 the gradient is B's, and twice the alpha is twice of it."""
    plain, twice = (first_step(settings, tmp_path / str(a), lora={"alpha": a}) for a in (0.0, 4.0))  # 0 = rank = 2
    assert twice["grad_norm"] == pytest.approx(2 * plain["grad_norm"], rel=1e-4)


def test_gradient_checkpointing_is_on_when_asked_for(settings):
    for wanted in (True, False):
        backbone = load_policy(settings(engine={"gradient_checkpointing": wanted}), "cpu")
        assert backbone.pipe.unet.is_gradient_checkpointing is wanted


def test_dropout_and_checkpointing_train(settings, tmp_path):
    summary = fit(settings(lora={"dropout": 0.3}, engine={"gradient_checkpointing": True}), tmp_path)
    assert summary["steps"] == 4


def test_measures_are_without_dropout_and_repeat_themselves(settings, tmp_path):
    """A policy away from the reference, with dropout .5: two looks see the same, and training mode returns."""
    wanted = settings(lora={"dropout": 0.5}, data={"holdout": 0.34})
    setup = prepare(wanted, Run(tmp_path), False, silent)
    with torch.no_grad():
        for parameter in setup.backbone.parameters():
            parameter.add_(0.1)
    first, again = Monitor(setup).measure(), Monitor(setup).measure()
    assert first == again and first["drift"] > 0 and "holdout_loss" in first
    assert any(isinstance(m, torch.nn.Dropout) and m.training for m in setup.backbone.pipe.unet.modules())


def test_previews_come_as_often_as_asked(settings, tmp_path):
    fit(settings(eval={"count": 1, "every": 3}), tmp_path)
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step-0", "step-3", "step-4"}


def test_accumulation_of_a_launcher_does_not_scale_the_gradient(settings, tmp_path, monkeypatch):
    plain = first_step(settings, tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert first_step(settings, tmp_path / "launched")["grad_norm"] == plain["grad_norm"]


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"device": "banana"}, "no device 'banana'"),
        ({"device": "cuda:9"}, "no device 'cuda:9'"),
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
    ],
)
def test_a_machine_that_cannot(settings, tmp_path, engine, words):
    if torch.cuda.is_available() and "mixed_precision" in engine:
        engine = engine | {"device": "cpu"}
    with pytest.raises(InputError, match=words) as caught:
        fit(settings(engine=engine), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_one_of_several_gpus_is_the_one_that_is_used(settings, tmp_path, monkeypatch):
    """accelerate knows only the current GPU: the one that was named becomes that. Several processes have one each."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(setup_room, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert setup_room._device(settings(engine={"device": "cuda:1"}).engine) == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="cuda:1 is one GPU for several processes"):
        setup_room._device(settings(engine={"device": "cuda:1"}).engine)


def test_kernels_that_repeat_themselves_are_chosen_inside_a_run(settings):
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    with isolated(settings().engine):
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
    assert (cudnn.benchmark, cudnn.deterministic) == before


def test_no_password_is_written(settings, tmp_path, monkeypatch, pairs_file):
    """A store on PostgreSQL: its address is in the command, the settings, the card and the report, the password in no
    file; and the run goes on, with the address as it was given and as the folder has it."""
    pairs = load_pairs(settings().data)
    monkeypatch.setattr(setup_room, "load_pairs", lambda data: pairs)
    address = "postgresql://ada:se%23cret@host/prefs"
    wanted = settings(data={"pairs": "", "store": address}, optim={"steps": 1})
    monkeypatch.setattr("sys.argv", ["visfeedback", "train", "--data.store", address])
    fit(wanted, tmp_path, command=f"visfeedback train x.toml --data.store {address}")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path.name for path in files if b"cret" in path.read_bytes()]
    for name in ("config.toml", "card.md", "report.html", "summary.json", "environment.json"):
        assert "postgresql://ada@host/prefs" in (tmp_path / name).read_text(), name
    fit(wanted, tmp_path, resume=True)
    fit(settings(data={"pairs": "", "store": without_passwords(address)}, optim={"steps": 1}), tmp_path, resume=True)
    with pytest.raises(InputError, match=r"data\.store"):
        other = settings(data={"pairs": "", "store": address.replace("host", "other")}, optim={"steps": 1})
        fit(other, tmp_path, resume=True)


def test_the_card_names_the_model_as_others_know_it(settings, tmp_path):
    """A hub id stays a hub id, wherever its snapshot is; a model of a world is where that world keeps it; a single file
    is opened as one, by its pipeline's class."""
    summary = fit(settings(optim={"steps": 1}), tmp_path)
    setup = prepare(settings(optim={"steps": 1}), Run(tmp_path), True, silent)
    shapes = 'from visfeedback import shapes\n\npipe = DiffusionPipeline.from_pretrained(shapes.model_folder("sd"),'
    single = 'StableDiffusionPipeline.from_single_file("me/tiny.safetensors",'
    known = {
        "me/tiny": 'DiffusionPipeline.from_pretrained("me/tiny",',
        "shapes:sd": shapes,
        "me/tiny.safetensors": single,
    }
    for name, expected in known.items():
        setup.settings = settings(model={"id": name})
        text = card(setup, summary)
        assert expected in text and f"base_model: {name}" in text and str(settings().model.id) not in text
        assert "on 4 training images of 3 prompts" in text


def test_a_folder_has_one_run_at_a_time(settings, tmp_path):
    """`train --resume` in two terminals: the second one is told, and the first goes on."""
    with only_writer(tmp_path), pytest.raises(InputError, match="being written by another process"):
        fit(settings(), tmp_path, resume=True)
    assert fit(settings(optim={"steps": 1}), tmp_path)["steps"] == 1
    assert not (tmp_path / ".lock").exists()


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
