"""Lee et al.'s program on tiny networks: every stage leaves its files, is done once, and its parts can be left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visfeedback import config, store
from visfeedback.loops import _likes, lee_rwr
from visfeedback.loops._renders import write_renders
from visfeedback.loops._stages import Stages
from visfeedback.loops.lee_rwr import Settings, run
from visfeedback.plugins import InputError
from visfeedback.shapes import prompts as shapes_prompts
from visfeedback.shapes import verifier
from visfeedback.types.protocols import silent
from visfeedback.types.records import Feedback, Prompt, Sample

PRESET = Path(__file__).parents[2] / "configs" / "loops" / "lee_rwr_shapes.toml"
STAGES = ["draw", "label", "fit", "score", "real", "train", "evaluate"]


def settings(tiny_sd: Path, **changes: Any) -> Settings:
    """Labels by chance (slips of one half), for a random network draws nothing right."""
    table = {
        "loop": {"per_prompt": 3, "renders": 1}, "model": {"id": str(tiny_sd)}, "generate": {"steps": 2},
        "data": {"prompts": ["shapes:train:6"]}, "label": {"judge": "simulated:shapes", "noise": 0.5},
        "reward": {"hidden": 16, "epochs": 3, "distractors": 2}, "optim": {"steps": 3, "batch_size": 4},
        "lora": {"rank": 2}, "engine": {"device": "cpu", "threads": 1, "drift_every": 0, "checkpoint_every": 2},
        "evaluation": {"prompts": ["shapes:heldout:3"], "per_prompt": 2},
    }  # fmt: skip
    return config.build(Settings, config.merge(table, changes), "test")


@pytest.fixture(scope="module")
def finished(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("lee") / "out"
    return out, run(settings(tiny_sd), out, False, command="visfeedback loop lee")


def test_every_stage_leaves_its_files(finished):
    out, summary = finished
    assert list(Stages(out).seconds) == STAGES
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["drawn"] == {"images": 18, "prompts": 6}
    assert summary["labels"]["labels"] == 18 and 0 < summary["labels"]["good"] < 1
    assert summary["scored"]["images"] == 18
    assert summary["beta"] == 2.0 and summary["auxiliary"] == 0.5
    assert summary["training"]["steps"] == 3
    assert summary["tuned"]["rewards"].keys() == {"fit"}, "the trained reward is a witness, the verifier the judge"
    assert summary["judge"] == "verifier:shapes" and summary["tuned"]["accuracy"] is not None
    assert (out / "run" / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    assert "reward-weighted fine-tuning" in (out / "report.html").read_text()


def test_answers_are_feedback_in_a_store_and_scores_lie_beside_images(finished):
    out, _ = finished
    with store.open(f"sqlite:///{out / 'store.db'}", create=False) as opened:
        said = list(opened.feedback())
    assert {row.kind for row in said} == {"like"} and {row.judge for row in said} == {"simulated:shapes#0"}
    rows = [json.loads(line) for line in (out / "scored.jsonl").read_text().splitlines()]
    assert len(rows) == 18 and all(0 <= row["score"] <= 1 and (out / row["image"]).is_file() for row in rows)


def test_a_finished_run_is_only_read_again(tiny_sd, finished):
    out, summary = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".png", ".safetensors")}
    again = run(settings(tiny_sd), out, True, command="visfeedback loop lee")
    assert again == json.loads(json.dumps(summary))
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("stage", ["label", "score", "train"])
def test_a_run_that_stopped_goes_on_to_the_same_numbers(tiny_sd, finished, stage):
    """Cut the journal before a stage, as a kill while it worked would: what is there already is used again."""
    out, summary = finished
    text = (out / "scored.jsonl").read_text()
    cut(out, stage)
    again = run(settings(tiny_sd), out, True)
    assert again["tuned"]["rewards"] == summary["tuned"]["rewards"]
    assert again["labels"] == summary["labels"]
    assert (out / "scored.jsonl").read_text() == text


def test_a_folder_that_was_moved_goes_on(tiny_sd, finished, tmp_path):
    """Copied, and cut back to the middle of the training, as a kill would: images are listed by paths that move along,
    and the run beside them is the same run."""
    out, summary = finished
    moved = tmp_path / "moved" / "here"
    shutil.copytree(out, moved)
    cut(moved, "train")
    shutil.rmtree(moved / "run/checkpoints/step-3")
    listed = (moved / "scored.jsonl").read_text().splitlines()
    assert not any(Path(json.loads(line)["image"]).is_absolute() for line in listed)
    again = run(settings(tiny_sd), moved, True)
    assert again["tuned"] == summary["tuned"] and again["drift"] == summary["drift"]
    assert str(moved / "scored.jsonl") in (moved / "run/config.toml").read_text()


def test_the_ablations_are_settings(tiny_sd, tmp_path):
    """Neither prompt classification nor real data; then nothing real is drawn or learned."""
    chosen = settings(tiny_sd, reward={"auxiliary": 0.0}, method={"beta": 0.0}, evaluation={"per_prompt": 1})
    summary = run(chosen, tmp_path / "out", False)
    assert summary["auxiliary"] == 0.0 and summary["beta"] == 0.0
    assert set(summary["delta_per_category"]) == {"single_object", "colors", "two_objects"}, "the first three prompts'"
    assert not (tmp_path / "out" / "real").exists()
    assert "error_real" not in (tmp_path / "out" / "run" / "metrics.jsonl").read_text()


def test_people_label_in_a_store_and_nothing_is_drawn(tiny_sd, tmp_path):
    """Images and likes of a store are all that is learned from."""
    images = tmp_path / "images"
    write_renders([Prompt.of(text) for text in ("a red circle", "two squares", "a big cross", "a blue square")], 2, 0,
                  images)  # fmt: skip
    listed = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    url = f"sqlite:///{tmp_path / 'people.db'}"
    with store.open(url) as opened:
        samples = [sample_of(row, images) for row in listed]
        opened.add_samples(samples, images)
        opened.add_feedback(liked(sample, bool(k % 2)) for k, sample in enumerate(samples))
    chosen = settings(tiny_sd, label={"judge": "store", "store": url}, data={"real": ""}, evaluation={"per_prompt": 1})
    summary = run(chosen, tmp_path / "out", False)
    assert summary["drawn"]["images"] == 0
    assert summary["labels"] == {"judge": "store", "labels": 8, "good": 0.5, "left_out": {}}
    assert summary["beta"] == 0.0, "there is no real data"
    before = [json.loads(line)["image"] for line in (tmp_path / "out/scored.jsonl").read_text().splitlines()]
    label_one_more(url, tmp_path / "more")
    cut(tmp_path / "out", "fit")
    again = run(chosen, tmp_path / "out", True)
    assert again["labels"] == summary["labels"] and again["reward"] == summary["reward"]
    after = [json.loads(line)["image"] for line in (tmp_path / "out/scored.jsonl").read_text().splitlines()]
    assert len(after) == 8 and after == before, "what people say after the labels were read is for another run"
    (tmp_path / "out/labels.jsonl").unlink()  # as in folders of before
    assert len(lee_rwr.Program(chosen, tmp_path / "out", silent).labels()) == 9


def label_one_more(url: str, folder: Path) -> None:
    """As people do while the reward is being fitted."""
    write_renders([Prompt.of("a green triangle")], 1, 0, folder)
    sample = sample_of(json.loads((folder / "metadata.jsonl").read_text()), folder)
    with store.open(url) as opened:
        opened.add_samples([sample], folder)
        opened.add_feedback([liked(sample, True)])


def cut(out: Path, stage: str) -> None:
    """Forget the stages from this one on, as a kill while it worked would."""
    lines = (out / "stages.jsonl").read_text().splitlines()[: STAGES.index(stage)]
    (out / "stages.jsonl").write_text("".join(f"{line}\n" for line in lines))


def liked(sample: Sample, good: bool) -> Feedback:
    value = 1.0 if good else -1.0
    return Feedback(
        kind="like", judge="human:ada", prompt_id=sample.prompt_id, sample_ids=(sample.id,), values=(value,)
    )


def sample_of(row: dict[str, str], root: Path) -> Sample:
    from visfeedback.types.records import image_id

    with Image.open(root / row["file_name"]) as image:
        rgb = image.convert("RGB")
    prompt = Prompt.of(row["prompt"])
    return Sample(
        id=image_id(*rgb.size, rgb.tobytes()), prompt_id=prompt.id, prompt=prompt.text, path=row["file_name"],
        width=rgb.width, height=rgb.height,
    )  # fmt: skip


def test_renders_show_what_their_prompts_say(tmp_path):
    prompts = shapes_prompts("train:14")
    write_renders(prompts, 2, 0, tmp_path / "a")
    rows = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 28
    right = [verifier().verify(r["prompt"], Image.open(tmp_path / "a" / r["file_name"])).right for r in rows]
    assert sum(right) >= 27, "the verifier is wrong once in 200 renders"
    write_renders(prompts, 2, 0, tmp_path / "b")
    first = rows[0]["file_name"]
    assert (tmp_path / "a" / first).read_bytes() == (tmp_path / "b" / first).read_bytes()


def test_a_simulated_person_slips_as_often_as_told():
    """Likes of an empty picture: never good, so every like is a slip; 400 of them at 0.25: 100 +- 4 deviations."""
    _, likes = _likes.invite(_likes.LabelChoice(judge="simulated:shapes", noise=0.25), seed=0)
    empty = Image.new("RGB", (64, 64))
    slips = sum(likes(Prompt.of("a red circle"), empty, str(name)) for name in range(400))
    assert 65 < slips < 135
    assert likes(Prompt.of("a red circle"), empty, "7") == likes(Prompt.of("a red circle"), empty, "7")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"prompts": ["an oil painting of a fox"]}}, r"cannot read the prompt 'an oil painting of a fox'"),
        ({"label": {"judge": "verifer:shapes"}}, r"no judge 'verifer:shapes' of single images; did you mean"),
        ({"label": {"judge": "store"}}, r"--label.store"),
        ({"data": {"real": "nowhere"}}, "no nowhere; --data.real is a folder"),
        ({"evaluation": {"prompts": ["nowhere.txt"]}}, "no file nowhere.txt"),
        ({"label": {"store": "sqlite:///p.db"}}, r"--label.judge store"),
        ({"label": {"judge": "store", "store": "sqlite:///nowhere.db"}}, r"no store at nowhere.db"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_is_drawn(tiny_sd, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as found:
        run(settings(tiny_sd, **changes), tmp_path / "out", False)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_labels_that_are_all_alike_are_one_line(tiny_sd, tmp_path):
    """A random network draws nothing right, so the verifier calls every image bad."""
    with pytest.raises(InputError, match="say 0; a reward needs good and bad images"):
        run(settings(tiny_sd, label={"judge": "verifier:shapes", "noise": 0.0}), tmp_path / "out", False)


def test_the_preset_fits_the_program():
    chosen = config.build(Settings, config.read_toml(PRESET), str(PRESET))
    assert chosen.method.weighting == "reward" and chosen.method.beta > 0 and chosen.reward.auxiliary > 0
    assert lee_rwr.Settings().data.real == "renders"
