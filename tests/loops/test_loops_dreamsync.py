"""DreamSync on tiny networks: two judges, the best that pass, rounds that build on each other and on a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from visfeedback import config
from visfeedback.loops._filter import Filter, Judged, passing
from visfeedback.loops._stages import Stages
from visfeedback.loops.dreamsync import Settings, run
from visfeedback.plugins import InputError

PRESET = Path(__file__).parents[2] / "configs" / "loops" / "dreamsync_shapes.toml"
STAGES = [f"round-{n}/{stage}" for n in (1, 2) for stage in ("draw", "judge", "train", "evaluate")]


def settings(tiny_sd: Path, **changes: Any) -> Settings:
    """Thresholds that about half of a random network's images pass."""
    table = {
        "loop": {"rounds": 2, "per_prompt": 3}, "model": {"id": str(tiny_sd)}, "generate": {"steps": 2},
        "data": {"prompts": ["a red circle", "two squares", "a big cross"]},
        "filter": {"faithful_from": 0.0, "beautiful": "shapes_clip", "beautiful_from": -1.0},
        "optim": {"steps": 2, "batch_size": 2, "lr": 1e-2}, "lora": {"rank": 2},
        "engine": {"device": "cpu", "threads": 1, "drift_every": 0},
        "evaluation": {"prompts": ["shapes:heldout:3"], "per_prompt": 1, "steps": 3},
    }  # fmt: skip
    return config.build(Settings, config.merge(table, changes), "test")


@pytest.fixture(scope="module")
def finished(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("dreamsync") / "out"
    return out, run(settings(tiny_sd), out, False, command="visfeedback loop dreamsync")


def learned(out: Path, number: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"round-{number}" / "learned.jsonl").read_text().splitlines()]


def test_two_judges_and_the_best_that_pass():
    """Of four images of p, the second fails one threshold; the best sum gets 2, then 2 - 1/3, 2 - 2/3."""
    judged = [Judged("p", 0.9, 1.0), Judged("p", 0.95, 0.1), Judged("p", 1.0, 2.0), Judged("p", 0.9, 0.7),
              Judged("q", 0.2, 9.0)]  # fmt: skip
    found = passing(judged, Filter(faithful_from=0.9, beautiful_from=0.6))
    assert found == pytest.approx([2 - 1 / 3, 0, 2.0, 2 - 2 / 3, 0])


def test_the_second_judge_may_count_for_less():
    """Sums .5 + 3 w and .9 + w: the first is best at w = 1, the second at w = 0.1."""
    judged = [Judged("p", 0.5, 3.0), Judged("p", 0.9, 1.0)]
    weights = {weight: passing(judged, Filter(faithful_from=0.0, beautiful_from=0.0, beautiful_weight=weight))
               for weight in (1.0, 0.1)}  # fmt: skip
    assert weights == {1.0: [2.0, 1.5], 0.1: [1.5, 2.0]}


def test_rounds_build_on_each_other(finished):
    out, summary = finished
    assert list(Stages(out).seconds) == STAGES
    assert [row["images"] for row in summary["rounds"]] == [9, 9]
    assert all(row["passing"] == 1 and row["prompts_kept"] == 3 for row in summary["rounds"])
    sample = json.loads((out / "round-2" / "drawn" / "samples.jsonl").read_text().splitlines()[0])
    assert sample["adapter"] == str(out / "round-1" / "run" / "adapter"), "round 2 draws with what round 1 learned"
    judged = json.loads((out / "round-2/evaluation/tuned/samples.jsonl").read_text().splitlines()[0])
    assert (sample["steps"], judged["steps"]) == (2, 3), "judged in other steps than it was drawn in"
    second = json.loads((out / "round-2" / "run" / "summary.json").read_text())
    assert second["drift"] > 0
    assert summary["tuned"]["rewards"].keys() == {"shapes_verifier", "shapes_clip"}
    assert "Round by round" in (out / "report.html").read_text()
    base = [(out / f"round-{n}" / "evaluation" / "base" / "samples.jsonl").read_text() for n in (1, 2)]
    assert base[0] == base[1], "the base images are drawn once"


def test_rounds_accumulate_unless_told_otherwise(tiny_sd, finished, tmp_path):
    """9 images pass in each round, so round 2 learns from 18, or from its own 9."""
    out, _ = finished
    assert (len(learned(out, 1)), len(learned(out, 2))) == (9, 18)
    assert len({row["group"] for row in learned(out, 2)}) == 6, "the best of a prompt is chosen round by round"
    run(settings(tiny_sd, loop={"accumulate": False}), tmp_path / "out", False)
    assert len(learned(tmp_path / "out", 2)) == 9


@pytest.mark.parametrize("stage", ["round-1/judge", "round-2/draw", "round-2/train"])
def test_a_run_that_stopped_goes_on_to_the_same_numbers(tiny_sd, finished, stage):
    """Cut the journal before a stage, as a kill while it worked would: what is there already is used again."""
    out, summary = finished
    lines = (out / "stages.jsonl").read_text().splitlines()[: STAGES.index(stage)]
    (out / "stages.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(InputError, match="--resume"):
        run(settings(tiny_sd), out, False)
    again = run(settings(tiny_sd), out, True)
    assert again["tuned"]["rewards"] == summary["tuned"]["rewards"]
    assert [row["faithful"] for row in again["rounds"]] == [row["faithful"] for row in summary["rounds"]]


def test_other_settings_do_not_go_on(tiny_sd, finished):
    with pytest.raises(InputError, match=r"config.toml has .* = .*, now it is"):
        run(settings(tiny_sd, loop={"per_prompt": 4}), finished[0], True)


def test_a_round_that_keeps_nothing_is_one_line(tiny_sd, tmp_path):
    with pytest.raises(
        InputError, match=r"round 1: none of 9 images has shapes_verifier 2 and shapes_clip -1"
    ) as found:
        run(settings(tiny_sd, filter={"faithful_from": 2.0}), tmp_path / "out", False)
    assert "\n" not in str(found.value) and "--filter.faithful-from" in str(found.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"prompts": ["an oil painting"]}}, "cannot read the prompt 'an oil painting'"),
        ({"filter": {"beautiful": "estetic"}}, "no 'estetic' in rewards"),
    ],
)
def test_judges_that_cannot_judge_are_one_line_before_anything_is_drawn(tiny_sd, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(settings(tiny_sd, **changes), tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def test_the_preset_fits_the_program():
    chosen = config.build(Settings, config.read_toml(PRESET), str(PRESET))
    assert chosen.loop.rounds == 2
    assert chosen.evaluation.judge == "verifier:shapes"
    assert "shapes_verifier" not in (chosen.filter.faithful, chosen.filter.beautiful), "the judge must not filter"
