"""A run that was stopped anywhere ends with the same bits as one that never was."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from visfeedback import config
from visfeedback.plugins import InputError
from visfeedback.training.fit import fit
from visfeedback.training.run import read_metrics

RESULTS = ("adapter/pytorch_lora_weights.safetensors", "checkpoints/step-6/adapter.safetensors",
           "checkpoints/step-6/ema.safetensors")  # fmt: skip
CLOCKS = ("seconds", "step_seconds")


@pytest.fixture
def long(settings):
    """Everything that has state: dropout, EMA, accumulation, dropped prompts, mirrored images, averaged rows."""

    def build(**changes):
        base = {
            "data": {"prompt_drop": 0.3, "flip": True},
            "optim": {"steps": 6, "accumulate": 2, "schedule": "cosine", "warmup": 2},
            "lora": {"dropout": 0.2},
            "engine": {"ema": {"decay": 0.9}, "log_every": 2, "drift_every": 3, "cache": {"draws": 2}},
        }
        return settings(**config.merge(base, changes))

    return build


def assert_same(a: Path, b: Path) -> None:
    for name in RESULTS:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    rows = [
        [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_metrics(x / "metrics.jsonl")] for x in (a, b)
    ]
    assert rows[0] == rows[1]


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


@pytest.mark.parametrize("at", [1, 3, 5])  # checkpoints at 2, 4, 6
def test_resume_equals_uninterrupted(long, tmp_path, monkeypatch, at):
    """Killed in step ``at`` (checkpoints at 2, 4, 6), so resumed from 0, 2 or 4; metrics hold no step twice."""
    from visfeedback.training.step import Stepper

    fit(long(), tmp_path / "whole")
    step = Stepper.step

    def dies(self, number, stop):
        if number == at:
            raise Killed
        return step(self, number, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", dies)
        with pytest.raises(Killed):
            fit(long(), tmp_path / "cut")
    fit(long(), tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_checkpoint_that_was_being_written_is_ignored(long, tmp_path, monkeypatch):
    """Killed between the files of step 4: the hidden folder does not count and is written anew."""
    from visfeedback.training import checkpoint

    fit(long(), tmp_path / "whole")
    write = checkpoint._write

    def dies(folder, snapshot):
        if snapshot.position.step == 4:
            (folder / "adapter.safetensors").write_bytes(b"half")
            raise Killed
        write(folder, snapshot)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", dies)
        with pytest.raises(Killed):
            fit(long(), tmp_path / "cut")
    assert checkpoint.steps(tmp_path / "cut/checkpoints") == [2]
    fit(long(), tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_fill_that_was_cut_gives_the_same_tables(long, tmp_path, monkeypatch):
    """Shards are cut by key order alone, so a table finished in two goes equals one finished in one."""
    from visfeedback.training import cache

    monkeypatch.setattr(cache, "SHARD", 3)
    fit(long(), tmp_path / "whole")
    save, calls = cache.save, []

    def dies(tensors):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return save(tensors)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "save", dies)
        with pytest.raises(Killed):
            fit(long(), tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["cache"], "nothing else is written before that"
    fit(long(), tmp_path / "cut")  # a folder with tables only is as good as empty
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_resumes_to_itself(settings, tmp_path):
    first = fit(settings(), tmp_path)
    again = fit(settings(), tmp_path, resume=True)
    assert {**again, "peak_mib": 0} == {**first, "peak_mib": 0}


@pytest.mark.parametrize("draws", [0, 1])
def test_more_steps_go_on_where_a_run_ended(settings, tmp_path, draws):
    """With a constant rate the first steps do not know how many follow: 2 then 6 equals 6. So it is when rows of the
    reference are used again only by the later steps (1 draw: 5 rows, 4 places, then 12), and when tables grow."""

    def run(steps):
        return settings(optim={"steps": steps}, data={"prompt_drop": 0.3, "flip": True},
                        engine={"cache": {"draws": draws}, "drift_every": 3})  # fmt: skip

    fit(run(6), tmp_path / "six")
    fit(run(2), tmp_path / "two")
    fit(run(6), tmp_path / "two", resume=True)
    six, two = (tmp_path / name / "checkpoints/step-6/adapter.safetensors" for name in ("six", "two"))
    assert six.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"method": {"beta": 1.0}}, "method.beta"),
        ({"optim": {"lr": 1.0}}, "optim.lr"),
        ({"engine": {"cache": {"draws": 7}}}, "engine.cache.draws"),
        ({"optim": {"steps": 2}}, "optim.steps"),
    ],
)
def test_resume_with_other_settings_names_the_key(settings, tmp_path, changes, key):
    fit(settings(), tmp_path)
    with pytest.raises(InputError, match=f"started with {key} ="):
        fit(settings(**changes), tmp_path, resume=True)


def test_what_changes_nothing_may_change(settings, tmp_path):
    fit(settings(), tmp_path)
    fit(settings(engine={"keep": 1, "log_every": 2, "checkpoint_every": 0}), tmp_path, resume=True)


def test_a_used_folder_needs_resume(settings, tmp_path):
    fit(settings(), tmp_path)
    with pytest.raises(InputError, match="not empty; add --resume"):
        fit(settings(), tmp_path)


@pytest.mark.parametrize(
    "name", ["config.toml", "environment.json", *(f"checkpoints/step-4/{part}" for part in
             ("state.json", "adapter.safetensors", "optimizer.pt", "random-0.pt"))],
)  # fmt: skip
def test_a_damaged_file_is_one_line(settings, tmp_path, name):
    """Half of it, as a copy that broke off leaves it: the file or its checkpoint is named; the one before serves."""
    fit(settings(), tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] + b"[")
    part = file.parent.name if "checkpoints" in name else name
    with pytest.raises(InputError, match=part) as error:
        fit(settings(), tmp_path, resume=True)
    assert "\n" not in str(error.value)
    if "checkpoints" in name:
        shutil.rmtree(file.parent)
        assert fit(settings(), tmp_path, resume=True)["steps"] == 4


def test_resume_of_nothing_starts(settings, tmp_path):
    assert fit(settings(), tmp_path / "new", resume=True)["steps"] == 4


def test_a_folder_of_something_else_is_left_alone(settings, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds no run"):
        fit(settings(), tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_preferences_of_a_run_do_not_change_under_it(settings, tmp_path):
    """pairs.jsonl is what a resumed run learns from, whatever has been added to the source since."""
    source = tmp_path / "data"
    source.mkdir()
    from shutil import copytree

    original = Path(settings().data.pairs).parent
    copytree(original, source, dirs_exist_ok=True)
    mine = settings(data={"pairs": str(source / "pairs.jsonl")})
    fit(mine, tmp_path / "whole")
    more = settings(data={"pairs": str(source / "pairs.jsonl")}, optim={"steps": 6})
    lines = (source / "pairs.jsonl").read_text().splitlines()
    (source / "pairs.jsonl").write_text("\n".join([*lines, lines[0].replace('"a"', '"b"')]) + "\n")
    assert fit(more, tmp_path / "whole", resume=True)["pairs"] == 5


def test_a_model_that_changed_is_noticed(settings, tiny_sd, tmp_path):
    from shutil import copytree

    copytree(tiny_sd, tmp_path / "model")
    mine = settings(model={"id": str(tmp_path / "model")})
    fit(mine, tmp_path / "run")
    weights = tmp_path / "model/vae/config.json"
    weights.write_text(weights.read_text() + " ")
    with pytest.raises(InputError, match="model has changed since the run"):
        fit(mine, tmp_path / "run", resume=True)


def test_another_device_is_noticed(settings, tmp_path):
    """Another kind of device gives other bits; another model of the same kind perhaps."""
    fit(settings(optim={"steps": 1}), tmp_path)
    file = tmp_path / "environment.json"
    recorded = json.loads(file.read_text())
    file.write_text(json.dumps(recorded | {"device": "cuda:0", "device_name": "A100"}))
    with pytest.raises(InputError, match=r"started on cuda \(A100\), now it is cpu"):
        fit(settings(optim={"steps": 1}), tmp_path, resume=True)
    file.write_text(json.dumps(recorded | {"device_name": "another cpu"}))
    with pytest.warns(UserWarning, match="started on another cpu"):
        fit(settings(optim={"steps": 1}), tmp_path, resume=True)


def test_before_and_after_are_of_one_prompt(settings, tmp_path):
    """`eval.prompts` may change when a run goes on: what is shown side by side is what was drawn both times."""
    fit(settings(optim={"steps": 1}, eval={"prompts": ["a cat", "a dog"]}), tmp_path)
    fit(settings(optim={"steps": 2}, eval={"prompts": ["a dog", "a bird"]}), tmp_path, resume=True)
    step = tmp_path / "samples/step-0"
    assert json.loads((step / "prompts.json").read_text()) == ["a cat", "a dog"]
    report = (tmp_path / "report.html").read_text()
    assert "a dog" in report and "base model, &#39;a bird&#39;" not in report
    assert report.count("base model, &#39;") == 1
    picture = base64.b64encode(_png(step / "01.png")).decode()
    assert picture in report, "before is the dog's, which was the second picture then"


def _png(path: Path) -> bytes:
    """The picture as pages hold it."""
    from visfeedback.report.grids import data_uri

    return base64.b64decode(data_uri(Image.open(path)).partition(",")[2])


@pytest.mark.parametrize("at", [2, 5])
def test_ctrl_c_saves_and_goes_on(long, tmp_path, monkeypatch, at):
    """The signal comes within step ``at + 1``, of 6; the step ends, is saved, and the run continues from there."""
    from visfeedback.training.step import Stepper

    fit(long(), tmp_path / "whole")
    step = Stepper.step

    def interrupted(self, number, stop):
        if number == at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(long(), tmp_path / "cut")
    assert (tmp_path / f"cut/checkpoints/step-{at + 1}").is_dir()
    fit(long(), tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def _command(preset: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "visfeedback", "train", str(preset), "--out", str(out), "--resume"]


@pytest.mark.slow
def test_kill_9_at_random_moments(long, tmp_path):
    """SIGKILL at moments drawn anew each time (start-up, tables, training, files), always the same command again."""
    preset = tmp_path / "preset.toml"
    preset.write_text(config.to_toml(long(optim={"steps": 60}, engine={"checkpoint_every": 7})))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    started = time.monotonic()
    subprocess.run(_command(preset, tmp_path / "whole"), env=environment, check=True, capture_output=True)
    takes = time.monotonic() - started
    chance, kills = random.Random(), 0
    for attempt in range(12):
        share = chance.uniform(0.3, 1.0) if attempt else 0.5  # the first one is killed for sure
        patience = share * takes if attempt < 8 else None
        process = subprocess.Popen(_command(preset, tmp_path / "cut"), env=environment, stderr=subprocess.PIPE)
        try:
            _, words = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, words.decode()
        break
    else:
        pytest.fail("the run never ended")
    assert kills
    for name in ("adapter/pytorch_lora_weights.safetensors", "checkpoints/step-60/adapter.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), (
            f"after {kills} kills"
        )
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 60
