"""Several methods side by side: costs read from run folders, pooling over seeds, the table and the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visfeedback.evaluation.contest import points, pool, read_contestant, shown_along, summarise
from visfeedback.evaluation.contest_page import build, curves
from visfeedback.evaluation.contest_table import markdown
from visfeedback.evaluation.ledger import read_ledger
from visfeedback.evaluation.outcomes import FILE, Outcome, Seen
from visfeedback.evaluation.outcomes import summarise as summary_of
from visfeedback.evaluation.statistics import Z95, bootstrap
from visfeedback.plugins import InputError
from visfeedback.report.page import render_page

TRAINED = '[model]\nid = "shapes:sd"\ndtype = "fp32"\n[reward]\nname = "shapes_clip"\n[data]\nstore = ""\npaths = ""\n'
DASHES = "stroke-dasharray"
LOOP = '[model]\nid = "shapes:sd"\ndtype = "fp32"\n[loop]\nname = "{name}"\nrounds = 2\n'


def write(path: Path, value: Any) -> None:
    """Text, JSON, or JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in value) if isinstance(value, list) else json.dumps(value)
    path.write_text(value if isinstance(value, str) else lines)


def train_folder(folder: Path, steps: int = 4) -> Path:
    """Every step draws 8 images and takes 2 s; checkpoints at 2 and at the end."""
    write(folder / "config.toml", TRAINED)
    write(folder / "summary.json", {"steps": steps})
    write(
        folder / "metrics.jsonl", [{"step": s, "seconds": 2.0 * s, "images_made": 8 * s} for s in range(1, steps + 1)]
    )
    for step in (2, steps):
        write(folder / f"checkpoints/step-{step}/adapter.safetensors", "")
    return folder


def outcomes(tuned_right: list[bool], soft: float, reward: float, prompts: int = 4) -> list[Outcome]:
    """Half of the base right; its soft scores 0 and 1 and rewards -1 and 1 have the deviations .5 and 1."""
    rows = []
    for i, right in enumerate(tuned_right):
        base = Seen(
            sample_id=f"b{i}", path="x", right=i % 2 == 0, score=float(i % 2), rewards={"clip": 2.0 * (i % 2) - 1}
        )
        tuned = Seen(sample_id=f"t{i}", path="x", right=right, score=soft, rewards={"clip": reward})
        rows.append(Outcome(prompt_id=f"p{i % prompts}", prompt="a", category="one", seed=i, base=base, tuned=tuned,
                            win=1.0 if right else 0.5))  # fmt: skip
    return rows


def judged(folder: Path, rows: list[Outcome], drift: float) -> None:
    write(folder / FILE, "".join(row.model_dump_json() + "\n" for row in rows))
    more = {"drift": drift, "diversity": {"base": 0.3, "tuned": 0.2}, "judge": "verifier:shapes", "n_prompts": 4}
    write(folder / "summary.json", {**summary_of(rows, resamples=50), **more})


def contestant_folder(folder: Path, right: list[bool]) -> Path:
    train_folder(folder / "run")
    judged(folder / "evaluation", outcomes(right, 1.0, 0.5), 0.02)
    judged(folder / "along/step-2", outcomes([True, False, False, False], 0.75, 0.25)[:4], 0.01)
    return folder


# costs


def test_a_training_has_stops_where_weights_were_kept(tmp_path):
    """Checkpoints before the end, and the end itself by its adapter; 8 images and 2 s a step."""
    ledger = read_ledger(train_folder(tmp_path))
    assert [(s.name, s.images, s.seconds, s.weights) for s in ledger.stops] == [
        ("step-2", 16, 4.0, "checkpoints/step-2/adapter.safetensors"), ("step-4", 32, 8.0, "adapter"),
    ]  # fmt: skip
    assert (ledger.reward, ledger.adapter, ledger.images, ledger.seconds) == ("shapes_clip", "adapter", 32, 8.0)
    write(tmp_path / "checkpoints/step-2/ema.safetensors", "")
    assert read_ledger(tmp_path).stops[0].weights.endswith("ema.safetensors"), "the adapter holds the average"


def test_loops_count_what_their_stages_drew_and_took(tmp_path):
    """lee_rwr: 60 images before, 10 + 5 s, then as its run; dreamsync: two rounds of 20 images and 6 s; human_d3po:
    three of 12 images and 7 s, of which the second taught nothing: two stops, after 8 and 16 steps."""
    lee, sync, human = (tmp_path / name for name in ("lee_rwr", "dreamsync", "human_d3po"))
    for folder in (lee, sync, human):
        write(folder / "summary.json", {"per_round": [{"round": r, "images": 12, "seconds": 7.0, "learned": n}
                                                      for r, n in enumerate((12, 0, 9))]})  # fmt: skip
    write(lee / "config.toml", LOOP.format(name="lee_rwr") + '[label]\njudge = "verifier:shapes"\n')
    drawn = {"name": "draw", "seconds": 10.0, "facts": {"images": 60}}
    write(lee / "stages.jsonl", [drawn, {"name": "fit", "seconds": 5.0, "facts": {}},
                                 {"name": "evaluate", "seconds": 99.0, "facts": {}}])  # fmt: skip
    train_folder(lee / "run")
    found = read_ledger(lee)
    assert [(s.images, s.seconds) for s in found.stops] == [(60, 19.0), (60, 23.0)]
    assert found.adapter == "run/adapter" and found.stops[0].weights.startswith("run/checkpoints/")
    assert found.reward == f"fit@{lee / 'reward'}" and found.taught_by == "labels of verifier:shapes"
    write(sync / "config.toml", LOOP.format(name="dreamsync") + '[filter]\nfaithful = "a"\nbeautiful = "b"\n')
    facts = {"draw": {"images": 20}, "train": {"steps": 5}}
    write(sync / "stages.jsonl", [{"name": f"round-{r}/{stage}", "seconds": 2.0, "facts": facts.get(stage, {})}
                                  for r in (1, 2) for stage in ("draw", "judge", "train", "evaluate")])  # fmt: skip
    stops = read_ledger(sync).stops
    assert [(s.step, s.images, s.seconds) for s in stops] == [(5, 20, 6.0), (10, 40, 12.0)]
    write(human / "config.toml", LOOP.format(name="human_d3po") + '[ask]\njudge = ""\n[optim]\nsteps = 8\n')
    stops = read_ledger(human).stops
    assert [(s.step, s.images, s.seconds, s.weights) for s in stops] == [
        (8, 12, 7.0, "round-0/train/adapter"), (16, 36, 21.0, "round-2/train/adapter")
    ]  # fmt: skip


def test_what_is_no_finished_run_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"holds no finished run") as found:
        read_ledger(tmp_path)
    assert "\n" not in str(found.value)
    write(tmp_path / "config.toml", LOOP.format(name="fabric_rounds"))
    write(tmp_path / "summary.json", {})
    with pytest.raises(InputError, match="made by the loop 'fabric_rounds'; expected train or one of lee_rwr"):
        read_ledger(tmp_path)


# pooling


def test_one_training_has_the_interval_of_its_prompts():
    values = np.array([[0.0, 1.0, 1.0, 0.0, -1.0, 0.0]])
    names = list("aabbcc")
    assert pool(values, names, resamples=200) == bootstrap(values[0], names, resamples=200)


def test_trainings_that_differ_widen_the_interval_by_students_t():
    """Gains of .2 everywhere and of .4 everywhere: nothing varies over prompts, the standard error over two seeds is
    |.4 - .2| / 2 = .1 with one degree of freedom, t = 12.706."""
    found = pool(np.array([[0.2] * 6, [0.4] * 6]), list("abcdef"), resamples=100)
    assert found.value == pytest.approx(0.3)
    assert found.high - found.value == pytest.approx(12.706 * 0.1, rel=1e-3)


def test_trainings_that_agree_leave_the_prompts_interval():
    """No variance over seeds: the bootstrap's standard error times t of prompts - 1 degrees of freedom, 2.571."""
    row, names = [0.0, 1.0, 1.0, 0.0, -1.0, 0.0], list("abcdef")
    alone, both = bootstrap(row, names, resamples=2000), pool(np.array([row, row]), names, resamples=2000)
    error = (alone.high - alone.low) / (2 * Z95)
    assert both.high - both.value == pytest.approx(2.571 * error, rel=1e-3)


# the whole


def test_a_contest_is_pooled_and_drawn(tmp_path):
    """Base 4 of 8 right; tuned 8 and 6: +50 and +25 points, pooled +37.5. At the stop, on the first four images, the
    judge's soft score goes from .5 to .75, half a deviation; at the end to 1, a whole one. What was spent before
    counts from the first step on."""
    all_right, most = [True] * 8, [True] * 6 + [False] * 2
    runs = [read_contestant("dpo", seed, contestant_folder(tmp_path / f"dpo-{seed}", right), (100, 30.0))
            for seed, right in ((1, all_right), (2, most))]  # fmt: skip
    seen = points(runs[0], shown_along(runs))
    assert [(p.step, p.images, p.seconds, p.drift) for p in seen] == [
        (0, 0, 0.0, 0.0), (2, 116, 34.0, 0.01), (4, 132, 38.0, 0.02)
    ]  # fmt: skip
    assert [p.judge for p in seen] == [0.0, 0.5, 1.0] and [p.reward for p in seen] == [0.0, 0.25, 0.5]
    assert [p.accuracy for p in seen] == [0.5, 0.25, 1.0], "all on the images of the stops"
    other = read_contestant("raft", 1, contestant_folder(tmp_path / "raft-1", most))
    methods = summarise([other, *runs], resamples=100)
    assert list(methods) == ["dpo", "raft"], "the best first"
    dpo = methods["dpo"]
    assert dpo["delta"] == pytest.approx(0.375) and dpo["delta_ci95"][0] < 0.375 < dpo["delta_ci95"][1]
    assert dpo["seeds"] == [1, 2] and dpo["images"] == 132 and dpo["seconds"] == 38.0
    assert dpo["delta_per_category"]["one"]["delta"] == pytest.approx(0.375)
    assert json.loads(json.dumps(methods)) == methods
    lines = markdown(methods).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "| dpo | shapes_clip | 50.0 -> 87.5 | +37.5 (" in lines[2] and "+50.0, +25.0" in lines[2]
    around = {"judge": "verifier:shapes", "n_prompts": 4, "images_per_prompt": 2, "command": "python x", "failed": {}}
    text = render_page(build(methods, around))
    assert text.count("<svg") >= 3 and "Trained reward and judge over drift" in text and "raft, seed 1" in text
    assert len(set(ids := [part.split('"')[0] for part in text.split(' id="')[1:]])) == len(ids)


def measured(folder: Path, right: list[bool], seeds: Sequence[int] = (1,)) -> dict[str, Any]:
    """Trainings of two methods that only differ in their stops: the second one's were not measured."""
    runs = []
    for seed in seeds:
        first, second = (contestant_folder(folder / f"{name}-{seed}", right) for name in ("dpo", "raft"))
        shutil.rmtree(second / "along")
        runs += [read_contestant("dpo", seed, first), read_contestant("raft", seed, second)]
    return summarise(runs, resamples=100)


def test_curves_are_of_the_same_images_for_all(tmp_path):
    """On the four images of the stops, of which the base has 2 right and these trainings 3; of all eight they have 5,
    so 62.5%. A method whose stops were not measured is shown on the four, too: its curve begins and ends as the other's
    does. (Base and end are 50% and 75% of four.)"""
    methods = measured(tmp_path, [True, True, True, False, True, False, False, True])
    assert methods["dpo"]["tuned"] == methods["raft"]["tuned"] == 0.625
    dpo, raft = (methods[name]["per_seed"]["1"]["points"] for name in ("dpo", "raft"))
    assert len(dpo) == 3 and len(raft) == 2, "the stop was measured of one"
    assert [point["accuracy"] for point in raft] == [dpo[0]["accuracy"], dpo[-1]["accuracy"]] == [0.5, 0.75]


def test_the_base_is_dashed_where_there_is_one(tmp_path):
    """Methods that start from models of 50% and 25% have no common base: each curve shows its own."""
    methods = measured(tmp_path, [True] * 8)
    alike = curves(methods)[0]
    assert alike.caption == "Mean over seeds. Dashed: the base model." and DASHES in alike.svg
    methods["raft"]["per_seed"]["1"]["points"][0]["accuracy"] = 0.25
    differing = curves(methods)[0]
    assert differing.caption.endswith("A curve begins at its own base model.") and DASHES not in differing.svg


def test_one_training_improves_nothing_surely(tmp_path):
    """Intervals from 10 to 90 points, of one seed or of two: with one it is over prompts alone and says nothing of
    another training."""
    around = {"judge": "verifier:shapes", "n_prompts": 4, "images_per_prompt": 2, "command": "python x", "failed": {}}
    once, twice = measured(tmp_path / "a", [True] * 8), measured(tmp_path / "b", [True] * 8, (1, 2))
    for found in (*once.values(), *twice.values()):
        found["delta_ci95"] = [0.1, 0.9]
    assert "None of 2 methods surely improves the model" in (page := render_page(build(once, around)))
    assert "no improvement is sure of dpo, raft" in page
    assert "2 of 2 methods surely improve the model" in (page := render_page(build(twice, around)))
    assert "no improvement is sure" not in page
    alone = {"dpo": once["dpo"]}
    assert "dpo: no sure improvement" in render_page(build(alone, around))


def test_runs_that_were_judged_differently_are_not_pooled(tmp_path):
    first = read_contestant("dpo", 1, contestant_folder(tmp_path / "a", [True] * 8))
    second = read_contestant("dpo", 2, contestant_folder(tmp_path / "b", [True] * 6))
    with pytest.raises(InputError, match="runs of dpo were judged on different prompts or images"):
        summarise([first, second], resamples=50)
