"""D3PO with people in rounds, at toy size: a simulated person, votes in the store, and nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
import torch

from visfeedback import store
from visfeedback.config import build, merge, read_toml
from visfeedback.loops import human_d3po
from visfeedback.loops._journal import claim
from visfeedback.loops.human_d3po import Settings, run
from visfeedback.plugins import InputError
from visfeedback.sampling.samples import read_samples
from visfeedback.sampling.trajectories import read_trajectory
from visfeedback.types.records import PAIR_VALUES, Feedback

ROOT = Path(__file__).parents[2]
TOY = {
    "loop": {"rounds": 2},
    "rollout": {"prompts": ["a red circle", "two squares"], "prompts_per_round": 2, "per_prompt": 3, "steps": 2,
                "micro_batch": 2},
    "ask": {"judge": "simulated:shapes", "tastes": {"dark": 1.0}, "tie_band": 0.0},
    "optim": {"steps": 2, "batch_size": 3, "lr": 1e-3}, "lora": {"rank": 2},
    "engine": {"device": "cpu", "threads": 1, "drift_every": 0},
}  # fmt: skip


def toy(**changes) -> Settings:
    return build(Settings, merge(TOY, changes), "toy")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("loop") / "run"
    run(toy(), out, False, command="visfeedback loop X --out Y")
    return out


def test_two_rounds_leave_their_folders(finished):
    """2 prompts x 3 images: 6 images and 6 pairs a round; every stage's files are there."""
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["rounds"] == 2 and summary["images"] == 12 and summary["answers"] == 12
    assert summary["drift"] > 0 and Path(summary["adapter"]).is_dir()
    assert all(0 <= row["right"] <= 1 and row["taste"] is not None for row in summary["per_round"])
    assert "visfeedback loop X" in (finished / "report.html").read_text()
    assert [row["learned"] for row in summary["per_round"]] == [6, 6]
    assert summary["adapter"] == str(finished / "adapter")
    last, kept = finished / "round-1/train/adapter", finished / "adapter"
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == {p.name: p.read_bytes() for p in last.iterdir()}
    for number in range(2):
        folder = finished / f"round-{number}"
        assert len(read_samples(folder)) == 6 and len(list((folder / "trajectories").iterdir())) == 6
        assert (folder / "train/summary.json").is_file()


def test_the_reference_is_the_model_of_the_start(finished):
    """Round 0: policy = reference, so both log-probabilities are equal; round 1: they are not, and the loss of its
    first step is not ln 2, as it would be if the reference were the policy that drew."""
    gaps = []
    for number in range(2):
        folder = finished / f"round-{number}"
        paths = [read_trajectory(folder, sample.id)[0] for sample in read_samples(folder)]
        gaps.append(max((path["log_prob"] - path["reference_log_prob"]).abs().max().item() for path in paths))
    assert gaps[0] < 1e-5 < gaps[1]
    first = [json.loads((finished / f"round-{n}/train/metrics.jsonl").read_text().splitlines()[0]) for n in range(2)]
    assert first[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first[0]["log_ratio"] < 1e-5 < first[1]["log_ratio"]


def test_knobs_that_are_newer_than_the_folder_have_their_defaults(tmp_path):
    """config.toml of a version that did not know `rollout.random_times`: the same settings; another value is named."""
    out = tmp_path / "out"
    claim(out, toy(), False)
    file = out / "config.toml"
    table = read_toml(file)
    del table["rollout"]["random_times"], table["method"]["even_steps"]
    file.write_text(tomli_w.dumps(table))
    claim(out, toy(), True)
    rollout = toy().rollout.model_copy(update={"random_times": (0.1, 1.0)})
    with pytest.raises(InputError, match="random_times = "):
        claim(out, toy().model_copy(update={"rollout": rollout}), True)


def test_a_finished_program_resumes_to_itself(finished):
    before = (finished / "rounds.jsonl").read_text()
    run(toy(), finished, True)
    assert (finished / "rounds.jsonl").read_text() == before
    with pytest.raises(InputError, match="not empty; add --resume"):
        run(toy(), finished, False)


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["draw_groups", "ask", "fit"])
def test_killed_after_any_stage_it_ends_the_same(finished, tmp_path, monkeypatch, stage):
    """Killed when the stage of round 1 has done its work but nobody knows: the last adapter has the same bits."""
    work, calls = getattr(human_d3po, stage), []

    def dies(*args, **kwargs):
        result = work(*args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(human_d3po, stage, dies)
        with pytest.raises(Killed):
            run(toy(), tmp_path / "cut", False)
    run(toy(), tmp_path / "cut", True)
    name = "round-1/train/adapter/pytorch_lora_weights.safetensors"
    assert (finished / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_people_answer_in_their_own_time(tmp_path):
    """Nobody has answered: the program ends with a line that says how to go on, its questions are tasks in the store;
    votes arrive from elsewhere; --resume learns from them."""
    address = f"sqlite:///{tmp_path / 'votes.db'}"
    wanted = toy(loop={"rounds": 1, "store": address}, ask={"judge": ""})
    with pytest.raises(
        InputError, match=r"0 of 6 answers are there; .*visfeedback collect --store .*--resume"
    ) as caught:
        run(wanted, tmp_path / "run", False)
    assert "\n" not in str(caught.value)
    from visfeedback.store.desk import Desk

    samples = read_samples(tmp_path / "run/round-0")
    with store.open(address) as opened:
        assert Desk(opened).next("human:ada") is not None
        groups = [[s for s in samples if s.prompt == prompt] for prompt in TOY["rollout"]["prompts"]]
        pairs = [(g[a], g[b]) for g in groups for a, b in ((0, 1), (0, 2), (1, 2))]
        opened.add_feedback(
            Feedback(judge="human:ada", prompt_id=a.prompt_id, sample_ids=(a.id, b.id), choice=choice,
                     values=PAIR_VALUES[choice]) for (a, b), choice in zip(pairs, ["a", "a", "skip", "a"], strict=False)
        )  # fmt: skip
    with pytest.raises(InputError, match="4 of 6 answers are there"):
        run(wanted, tmp_path / "run", True)
    with pytest.raises(InputError, match=r"config.toml has rollout.steps = 2, now it is 3; "):
        run(toy(loop={"rounds": 1, "store": address}, ask={"judge": ""}, rollout={"steps": 3}), tmp_path / "run", True)
    fewer = toy(loop={"rounds": 1, "store": address}, ask={"judge": "", "answered": 0.6})
    first = run(fewer, tmp_path / "run", True)["per_round"][0]
    assert (first["asked"], first["answered"], first["skipped"], first["ties"]) == (6, 4, 1, 0)
    summary = run(wanted, tmp_path / "run", True)
    assert summary["answers"] == 4 and summary["who"] == "people"


def test_ratings_of_d3pos_own_files_are_votes(finished, tmp_path):
    """Its lists of scores come in through `store import`: three scores of a prompt are three comparisons."""
    from visfeedback.store.formats import d3po
    from visfeedback.training.settings import Data
    from visfeedback.training.stored_paths import load_paths

    samples = read_samples(finished / "round-0")
    folder = tmp_path / "d3po"
    (folder / "images").mkdir(parents=True)
    for i, sample in enumerate(samples):
        (folder / f"images/{i:05d}.png").write_bytes((finished / "round-0" / sample.path).read_bytes())
    (folder / "prompt.json").write_text(json.dumps([sample.prompt for sample in samples]))
    (folder / "ada.json").write_text(json.dumps([2, 1, 0, 0, 0, 1]))
    address = f"sqlite:///{tmp_path / 'd3po.db'}"
    with store.open(address) as opened:
        d3po.read(folder, opened)
    paths = load_paths(Data(paths=str(finished / "round-0"), store=address))
    assert [path.better for path in paths] == [
        (None, 1.0, 1.0), (0.0, None, 1.0), (0.0, 0.0, None), (None, 0.5, 0.0), (0.5, None, 0.0), (1.0, 1.0, None)
    ]  # fmt: skip


def test_drawing_has_the_precision_of_training(tiny_sd, tmp_path):
    """bf16: the paths are drawn and learned by the same network calls, so before the first update every ratio to the
    reference is 1 and its logarithm 0. Drawn in fp32, the network calls of training would be off by bf16's 2^-8."""
    wanted = toy(model={"id": str(tiny_sd)}, loop={"rounds": 1}, engine={"mixed_precision": "bf16"})
    run(wanted, tmp_path / "run", False)
    first = json.loads((tmp_path / "run/round-0/train/metrics.jsonl").read_text().splitlines()[0])
    assert first["log_ratio"] < 1e-4 and first["clipped"] == 0
    paths = [read_trajectory(tmp_path / "run/round-0", s.id)[0] for s in read_samples(tmp_path / "run/round-0")]
    assert max((path["log_prob"] - path["reference_log_prob"]).abs().max().item() for path in paths) < 1e-4


def vote(folder: Path, address: str, choices: list[str]) -> None:
    """A person's answers to the first pairs of a round, prompt by prompt."""
    samples = read_samples(folder)
    groups = [[s for s in samples if s.prompt_id == name] for name in dict.fromkeys(s.prompt_id for s in samples)]
    pairs = [(group[a], group[b]) for group in groups for a, b in ((0, 1), (0, 2), (1, 2))]
    with store.open(address) as opened:
        opened.add_feedback(
            Feedback(judge="human:ada", prompt_id=a.prompt_id, sample_ids=(a.id, b.id), choice=choice,
                     values=PAIR_VALUES[choice]) for (a, b), choice in zip(pairs, choices, strict=True)
        )  # fmt: skip


def test_a_round_of_ties_and_skips_is_skipped(tiny_sd, tmp_path):
    """Round 0: one preference among 6 pairs, so 2 images (and the run of its 2 steps sees one group of 3 twice: 6).
    Rounds 1 and 2: none, so they learn nothing and round 2 still draws with what round 0 left."""
    out, address = tmp_path / "run", f"sqlite:///{tmp_path / 'votes.db'}"
    wanted = toy(model={"id": str(tiny_sd)}, loop={"rounds": 3, "store": address}, ask={"judge": ""})
    with pytest.raises(InputError, match="0 of 6 answers"):
        run(wanted, out, False)
    vote(out / "round-0", address, ["a", *["tie"] * 3, *["skip"] * 2])
    with pytest.raises(InputError, match="0 of 6 answers"):
        run(wanted, out, True)
    vote(out / "round-1", address, ["tie"] * 6)
    with (
        pytest.warns(UserWarning, match=r"round 1: nobody preferred any image \(6 ties, 0 skipped of 6 pairs\)"),
        pytest.raises(InputError, match="0 of 6 answers"),
    ):
        run(wanted, out, True)
    vote(out / "round-2", address, ["skip"] * 6)
    with pytest.warns(UserWarning, match=r"round 2: .*\(0 ties, 6 skipped of 6 pairs\); nothing is learned"):
        summary = run(wanted, out, True)
    rows, first = summary["per_round"], out / "round-0/train/adapter"
    assert [row["learned"] for row in rows] == [2, 0, 0] and [row["loss"] for row in rows][1:] == [None, None]
    assert json.loads((first.parent / "summary.json").read_text())["images_seen"] == 6
    assert rows[0]["drift"] == rows[1]["drift"] == rows[2]["drift"] > 0
    assert {sample.adapter for sample in read_samples(out / "round-2")} == {str(first)}
    name = "pytorch_lora_weights.safetensors"
    assert (out / "adapter" / name).read_bytes() == (first / name).read_bytes()


def test_when_nobody_ever_prefers_anything_the_program_still_ends(tiny_sd, tmp_path):
    """No image is 100 points of worth better than another: all ties, and there is no adapter to name."""
    wanted = toy(model={"id": str(tiny_sd)}, ask={"tie_band": 100.0, "noise": 0.0})
    with pytest.warns(UserWarning, match="nothing is learned"):
        summary = run(wanted, tmp_path / "run", False)
    assert [row["ties"] for row in summary["per_round"]] == [6, 6] and summary["drift"] == 0
    assert summary["adapter"] == "" and not (tmp_path / "run/adapter").exists()
    assert "--adapter" not in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout": {"prompts": []}}, "nothing to draw; give --rollout.prompts"),
        ({"rollout": {"per_prompt": 1}}, "--rollout.per-prompt 2"),
        ({"engine": {"mixed_precision": "fp16"}}, "fp16 needs a GPU"),
        ({"rollout": {"eta": 0.0}}, "rollout.eta = 0"),
        ({"ask": {"judge": "simulated:mars"}}, "no world 'mars'"),
        ({"optim": {"batch_size": 4}}, "cuts groups of 3"),
    ],
)
def test_settings_that_cannot_work(tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        run(toy(**changes), tmp_path / "run", False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/round-0").exists(), "nothing is drawn in vain"


def test_the_preset_fits():
    settings = build(Settings, read_toml(ROOT / "configs/loops/human_d3po_shapes.toml"), "preset")
    assert settings.optim.batch_size % settings.rollout.per_prompt == 0 and settings.loop.rounds > 1
    assert torch.isfinite(torch.tensor(settings.optim.lr))
