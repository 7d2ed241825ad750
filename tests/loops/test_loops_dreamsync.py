"""DreamSync on tiny networks: two judges, the best that pass, rounds that build on each other and on a stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import Brightness

from visfeedback import config, rewards
from visfeedback.loops import _tuning, dreamsync
from visfeedback.loops._filter import Filter, Judged, passing
from visfeedback.loops._stages import Stages
from visfeedback.loops.dreamsync import Settings, run
from visfeedback.plugins import InputError
from visfeedback.training import scorer
from visfeedback.training.scorer import Scorer
from visfeedback.training.settings_online import RewardChoice
from visfeedback.types.protocols import silent
from visfeedback.types.records import Origin, Prompt

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
        ({"filter": {"beautiful": "ocr"}}, r"filter.beautiful = ocr cannot score .*quotes.*--filter.beautiful NAME"),
        ({"data": {"real": "nowhere"}}, "no nowhere; --data.real is a folder"),
        ({"evaluation": {"prompts": ["nowhere.txt"]}}, "no file nowhere.txt"),
    ],
)
def test_judges_that_cannot_judge_are_one_line_before_anything_is_drawn(tiny_sd, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(settings(tiny_sd, **changes), tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def judging(monkeypatch: pytest.MonkeyPatch, judge: Brightness) -> Brightness:
    """What every name of a reward means from now on."""
    monkeypatch.setattr(rewards, "load", lambda name, device="cpu", dtype="fp32": judge)
    return judge


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda scores: torch.where(scores == scores.min(), torch.nan, scores), "gave nan to an image of '.*'"),
        (lambda scores: scores[:, None], r"scores of shape \(9, 1\) for 9 images"),
    ],
)
def test_an_answer_that_is_no_score_is_one_line(tiny_sd, tmp_path, monkeypatch, spoil, words):
    """Not an image that fails the filter: nothing is filtered, and no NaN is in any file."""
    judging(monkeypatch, Brightness(spoil))
    with pytest.raises(InputError, match=words) as found:
        run(settings(tiny_sd), tmp_path / "out", False)
    assert "\n" not in str(found.value)
    assert not [path for path in (tmp_path / "out").rglob("*.jsonl") if "NaN" in path.read_text()]
    assert not (tmp_path / "out/round-1/scored.jsonl").exists()


class Server(Brightness):
    """A judge elsewhere, which answers so many questions and then is away."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.answers, self.origin = answers, Origin(model="http://judge.example")

    def combine(self, images, texts, pairing="paired"):
        if self.asked == self.answers:
            raise ConnectionError("connection refused")
        return super().combine(images, texts, pairing)


def test_a_judge_that_is_away_is_waited_for(tiny_sd, tmp_path, monkeypatch):
    """5 further attempts after 5, 10, 20, 40 and 80 seconds, then a line that says how to go on."""
    waits: list[float] = []
    monkeypatch.setattr(scorer.time, "sleep", waits.append)
    judging(monkeypatch, Server(0))
    with pytest.raises(InputError, match=r"does not answer \(6 attempts\): connection refused; .*--resume"):
        run(settings(tiny_sd), tmp_path / "out", False)
    assert waits == [5, 10, 20, 40, 80]


def test_scores_are_kept_as_they_come(finished, tmp_path, monkeypatch):
    """9 images, 4 at once: the second answer fails, so 4 scores are kept, and the next attempt asks for 4 and 1 more.
    All are what a judge that never failed says."""
    root, kept = finished[0] / "round-1/drawn", tmp_path / "scores.jsonl"
    samples, choice = _tuning.drawn(root), RewardChoice(name="any", retries=0, wait=0)
    judging(monkeypatch, Server(1))
    with pytest.raises(InputError, match="the scores before are kept, go on with --resume"):
        _tuning.scores_of(samples, root, Scorer(choice, "cpu"), kept, silent, at_once=4)
    assert len(kept.read_text().splitlines()) == 4
    again = judging(monkeypatch, Server(99))
    scores = _tuning.scores_of(samples, root, Scorer(choice, "cpu"), kept, silent, at_once=4)
    assert again.asked == 2
    expected = _tuning.scores_of(samples, root, Scorer(choice, "cpu"), tmp_path / "other.jsonl", silent)
    assert scores == pytest.approx(expected, abs=1e-6) and len(set(scores)) > 1


def test_judges_are_where_the_engine_is(tiny_sd, tmp_path, monkeypatch):
    """Both of them while they judge, as the other rewards of a training are; before, the CPU says whether they can."""
    seen = []

    def load(name, device="cpu", dtype="fp32"):
        seen.append((name, device))
        return Brightness()

    monkeypatch.setattr(rewards, "load", load)
    Filter().load([Prompt.of("a red circle")], "cuda:1")
    assert seen == [("shapes_verifier", "cuda:1"), ("shapes_clip", "cuda:1")]
    monkeypatch.setattr(dreamsync, "pick_device", lambda device: torch.device("meta", 3) if device == "cpu" else None)
    monkeypatch.setattr(dreamsync, "claim", lambda *_: (_ for _ in ()).throw(InputError("far enough")))
    with pytest.raises(InputError, match="far enough"):
        run(settings(tiny_sd), tmp_path / "out", False)
    assert seen[2:] == [("shapes_verifier", "cpu"), ("shapes_clip", "cpu")]
    monkeypatch.setattr(dreamsync._tuning, "drawn", lambda *_: (_ for _ in ()).throw(InputError("far enough")))
    program = dreamsync.Program(settings(tiny_sd), tmp_path / "out", silent, [Prompt.of("a red circle")])
    with pytest.raises(InputError, match="far enough"):
        program.judge(1)
    assert seen[4:] == [("shapes_verifier", "meta:3"), ("shapes_clip", "meta:3")]


def test_the_base_images_of_a_round_are_whole_or_absent(tiny_sd, finished, tmp_path, monkeypatch):
    """A copy that dies in the middle leaves nothing under the name `base`; the next one begins anew."""
    from visfeedback.loops import _folders

    source, target = finished[0] / "round-1/evaluation/base", tmp_path / "base"
    files = sorted(path.name for path in source.rglob("*") if path.is_file())
    copied, whole = [], shutil.copytree

    def dies(one, other):
        copied.append(other)
        if len(copied) == 2:
            raise KeyboardInterrupt
        return shutil.copyfile(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(_folders.shutil, "copytree", lambda a, b, *_: whole(a, b, copy_function=dies))
        with pytest.raises(KeyboardInterrupt):
            _folders.copy_whole(source, target)
    assert len(files) > 2 and not target.exists()
    _folders.copy_whole(source, target)
    (target / "samples.jsonl").unlink()
    _folders.copy_whole(source, target)
    assert sorted(path.name for path in target.rglob("*") if path.is_file()) == files
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_the_preset_fits_the_program():
    chosen = config.build(Settings, config.read_toml(PRESET), str(PRESET))
    assert chosen.loop.rounds == 2
    assert chosen.evaluation.judge == "verifier:shapes"
    assert "shapes_verifier" not in (chosen.filter.faithful, chosen.filter.beautiful), "the judge must not filter"
