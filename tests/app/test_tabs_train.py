"""Votes become a training run from the page: processes, presets, what is missing, what is shown. No browser here."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import app_server
import pytest
from app_server import until

from visfeedback import config
from visfeedback.app import train_actions as train
from visfeedback.app import train_presets, train_runs, train_view
from visfeedback.app.board_wiring import Wires
from visfeedback.app.context import Context
from visfeedback.app.train_jobs import Job
from visfeedback.app.train_pairs import FEWEST, Counter, Ready, count
from visfeedback.app.train_presets import Knobs
from visfeedback.app.train_runs import Judging, TrainRun
from visfeedback.plugins import InputError
from visfeedback.store.desk import Refused
from visfeedback.types.records import Feedback

COMMAND = """
import json, signal, sys, time
what = sys.argv[1]
if what == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
print("it begins", file=sys.stderr, flush=True)
if what == "wrong":
    print(json.dumps({"error": "no file x.toml"}))
    sys.exit(2)
try:
    while what != "short":
        time.sleep(0.02)
except KeyboardInterrupt:
    print(json.dumps({"error": "interrupted, state saved"}))
    sys.exit(130)
print(json.dumps({"steps": 3}))
"""
"""a program that stands for the command, to be waited for, interrupted and killed in milliseconds"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m visfeedback` is the program above, for it is found in the working directory first."""
    package = tmp_path / "stand-in" / "visfeedback"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(COMMAND)
    monkeypatch.chdir(package.parent)


@pytest.fixture
def begin(tmp_path: Path, stand_in: None) -> Iterator[Callable[..., Job]]:
    """``begin("long")``: a job whose process is the program above."""
    jobs: list[Job] = []

    def start(what: str, name: str = "job") -> Job:
        job = Job(tmp_path / name)
        job.start([what])
        jobs.append(job)
        until(lambda: job.tail() or not job.running)
        return job

    yield start
    for job in jobs:
        if job.running:
            os.killpg(json.loads(job.note.read_text())["process"], signal.SIGKILL)
            until(lambda job=job: not job.running)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """Images and nothing said about them."""
    url = f"sqlite:///{tmp_path}/p.db"
    app_server.fill(url, tmp_path / "images", prompts=4, each=4)
    with app_server.context(url) as made:
        made.model = "shapes:sd"
        yield made


def vote(context: Context, number: int) -> None:
    """As many decided pairs, each of other images."""
    by_prompt: dict[str, list[str]] = {}
    for sample in context.store.samples():
        by_prompt.setdefault(sample.prompt_id, []).append(sample.id)
    pairs = [(prompt, a, b) for prompt, ids in by_prompt.items() for i, a in enumerate(ids) for b in ids[i + 1 :]]
    context.store.add_feedback(
        Feedback(judge="human:ada", prompt_id=prompt, sample_ids=(a, b), choice="a", values=(1.0, 0.0))
        for prompt, a, b in pairs[:number]
    )


# processes


def test_a_job_is_followed_from_its_folder_alone(begin: Callable[..., Job]) -> None:
    """A restarted server knows nothing but the folder: another ``Job`` on it sees the same."""
    job = begin("long")
    again = Job(job.folder)
    assert (job.state, again.state, again.tail()) == ("running", "running", ["it begins"])
    again.stop()
    until(lambda: not again.running)
    assert (job.state, again.state, again.error) == ("stopped", "stopped", "")


def test_a_job_that_runs_is_not_started_again(begin: Callable[..., Job]) -> None:
    job = begin("long")
    with pytest.raises(InputError, match="still running"):
        Job(job.folder).start(["short"])
    assert job.state == "running"


def test_a_finished_job_has_its_answer(begin: Callable[..., Job]) -> None:
    job = begin("short")
    until(lambda: not job.running)
    assert (job.state, job.answer, job.error) == ("finished", {"steps": 3}, "")


def test_a_job_that_fails_says_why(begin: Callable[..., Job]) -> None:
    job = begin("wrong")
    until(lambda: not job.running)
    assert (job.state, job.error) == ("failed", "no file x.toml")


def test_a_killed_job_is_known_to_be_gone(begin: Callable[..., Job]) -> None:
    """Nothing is written when a process is killed: the system takes its lock, and that is enough."""
    job = begin("long")
    os.killpg(json.loads(job.note.read_text())["process"], signal.SIGKILL)
    until(lambda: not job.running)
    assert job.state == "failed"
    assert "killed, or out of memory" in job.error


def test_a_process_number_alone_is_not_believed(tmp_path: Path) -> None:
    """The number of an ended process may have gone to somebody else, who must not be interrupted: here, to us."""
    job = Job(tmp_path)
    job.note.write_text(json.dumps({"process": os.getpid(), "stop": 0, "started": 0}))
    (tmp_path / "process.lock").touch()
    assert not job.running
    job.stop()  # would raise KeyboardInterrupt in this process
    time.sleep(0.1)


def test_stopping_twice_ends_a_job_that_ignores_the_first(begin: Callable[..., Job]) -> None:
    """A program that is still loading may ignore Ctrl-C, as background jobs of a shell do."""
    job = begin("deaf")
    job.stop()
    time.sleep(0.2)
    assert job.state == "stopping"
    job.stop()
    until(lambda: not job.running)
    assert job.state == "stopped"


# presets


def test_the_preset_is_the_models_own_or_its_familys(tmp_path: Path) -> None:
    assert train_presets.preset_for("shapes:sd").stem == "shapes_sd_quick"  # type: ignore[union-attr]
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert train_presets.preset_for(str(tmp_path)).stem == "sd15"  # type: ignore[union-attr]
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(InputError, match=r"no preset for .* \(KandinskyPipeline\)"):
        train_presets.preset_for(str(tmp_path))
    assert train_presets.preset_for("shapes:sd", tmp_path) is None


@pytest.mark.parametrize("steps", [1, 7, 600])
def test_what_is_written_is_what_train_reads(steps: int) -> None:
    """The tables pass the trainer's own check, with the knobs in their places."""
    from visfeedback.training.settings import settings_for

    chosen = Knobs(name="x", steps=steps, beta=30, rank=4)
    path = train_presets.preset_for("shapes:sd")
    tables = train_presets.settings("shapes:sd", "sqlite:////p.db", chosen, pairs=20, prompts=50, path=path)
    built: Any = config.build(settings_for("dpo"), tables, "test")
    assert (built.optim.steps, built.method.beta, built.lora.rank, built.model.id) == (steps, 30, 4, "shapes:sd")
    assert built.optim.batch_size == 20 and built.data.holdout == 0.1 and built.optim.lr == 1e-3
    assert built.optim.warmup <= steps


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (("../x", 1, 1, 1), "name"), (("", 1, 1, 1), "name"), (("x", 0, 1, 1), "steps"), (("x", None, 1, 1), "steps"),
        (("x", 1, -1, 1), "beta"), (("x", 1, float("nan"), 1), "beta"), (("x", 1, 1, 10**9), "rank"),
        (("x", "many", 1, 1), "steps"), (("x" * 100, 1, 1, 1), "name"),
    ],
)  # fmt: skip
def test_wrong_knobs_are_one_line(values: tuple[Any, ...], word: str) -> None:
    with pytest.raises(InputError, match=word) as error:
        train_presets.knobs(*values)
    assert "\n" not in str(error.value)


def test_a_password_of_the_store_is_in_no_file() -> None:
    """PostgreSQL's own environment variable carries it: command lines and settings are seen by others."""
    url, more = train_presets.source_of("postgresql+psycopg://ada:s3cret@db/prefs")
    assert "s3cret" not in url and more == {"PGPASSWORD": "s3cret"}
    url, more = train_presets.source_of("postgresql+psycopg://ada@db/prefs?password=s3cret")
    assert "s3cret" not in url and more == {"PGPASSWORD": "s3cret"}


def test_a_store_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train_presets.source_of("sqlite:///p.db") == (f"sqlite:///{tmp_path}/p.db", {})


# what there is to learn from


def test_pairs_are_counted_as_training_counts_them(context: Context) -> None:
    """The law: the number on the page is the number of pairs that `visfeedback train` would use."""
    from visfeedback.training.data import load_pairs
    from visfeedback.training.settings import Data

    vote(context, 11)
    [first, *_] = context.store.feedback()
    context.store.add_feedback(
        [
            first.model_copy(update={"id": "t", "choice": "tie", "values": (0.5, 0.5), "sample_ids": ("x", "y")}),
            first.model_copy(update={"id": "s", "choice": "skip", "values": ()}),
            first.model_copy(update={"id": "g", "gold": True, "sample_ids": first.sample_ids[::-1]}),
            first.model_copy(update={"id": "gone", "sample_ids": ("x", "z")}),
        ]
    )
    found = count(context.store)
    assert found.pairs == len(load_pairs(Data(store=context.url))) == 11
    assert found.dropped == {"gold": 1, "skip": 1, "tie": 1, "without images": 1}
    assert found.answers == 15


def test_too_few_pairs_are_said_in_one_line(context: Context) -> None:
    vote(context, FEWEST - 1)
    with pytest.raises(InputError, match=f"at least {FEWEST} needed. Judge 1 more pair "):
        train.start(context, "x", 2, 60, 4)
    assert not context.runs.exists()
    assert "1 more pair with a clear winner" in train.readiness(context)


@pytest.mark.parametrize(("pairs", "words"), [(199, "Expect little"), (200, "a small gain"), (1000, "")])
def test_the_page_promises_no_more_than_the_pairs_hold(pairs: int, words: str) -> None:
    told = Ready(pairs=pairs, prompts=50, answers=1500).sentence
    assert told.startswith(f"{pairs:,} usable pairs over 50 prompts, from 1,500 answers.")
    assert told.count("Expect") == bool(words) and words in told


def test_before_the_first_run_the_page_says_what_a_run_is(context: Context) -> None:
    changed, _ = train.look(context, None, {})
    assert "No run yet" in changed["progress"]


def test_counting_goes_on_when_something_is_said(context: Context) -> None:
    counter = Counter(context.store)
    assert counter().pairs == 0
    vote(context, 3)
    assert counter().pairs == 3 and counter() is counter()


def test_the_model_is_found_in_the_store_when_nobody_named_it(context: Context) -> None:
    context.model = ""
    assert train.model(context) == "model-that-must-not-leak"


# runs


@pytest.mark.usefixtures("stand_in")
def test_one_run_at_a_time_and_every_name_once(context: Context) -> None:
    vote(context, 12)
    assert train.start(context, "one", 3, 60, 4) == "one learns from 12 pairs."
    with pytest.raises(InputError, match="one is being trained"):
        train.start(context, "two", 3, 60, 4)
    assert train.pace(context) < 5
    train.stop(context, "one")
    until(lambda: not train_runs.busy(context.runs))
    with pytest.raises(InputError, match="there is a run 'one' already"):
        train.start(context, "one", 3, 60, 4)
    assert train.suggestions(context)["name"] == "dpo-1"


@pytest.mark.usefixtures("stand_in")
def test_a_stopped_run_is_resumed_with_the_same_settings(context: Context) -> None:
    vote(context, 12)
    train.start(context, "one", 3, 60, 4)
    with pytest.raises(InputError, match="only what has stopped can go on"):
        train_runs.find(context.runs, "one").resume({})
    train.stop(context, "one")
    until(lambda: not train_runs.busy(context.runs))
    train.resume(context, "one")
    command = json.loads(train_runs.find(context.runs, "one").train.note.read_text())["command"]
    assert command[-1] == "--resume" and command[:2] == ["visfeedback", "train"]
    train.stop(context, "one")
    until(lambda: not train_runs.busy(context.runs))


@pytest.mark.parametrize("name", ["../x", "/etc", "", "x/../y", "nowhere", "a" * 3000])
def test_a_name_is_never_a_path(context: Context, name: str) -> None:
    (context.folder / "x" / "train").mkdir(parents=True)
    (context.folder / "x" / "train" / "job.json").write_text("{}")
    for does in (train.stop, train.resume, train.blind):
        with pytest.raises(InputError):
            does(context, name)


def test_judging_refuses_paths_and_nothing_to_judge(tmp_path: Path) -> None:
    run = TrainRun(tmp_path)
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "x.safetensors").touch()
    for asked, word in (
        (Judging(prompts="a", rewards="pickscore@/etc/passwd"), "expected names"),
        (Judging(prompts="a", rewards=""), "nobody judges"),
        (Judging(prompts=" \n ", rewards="pickscore"), "0 prompts"),
    ):
        with pytest.raises(InputError, match=word):
            run.judge(asked)
    assert Judging(prompts="shapes:heldout:8").world and not Judging(prompts="/etc/passwd").world


# what is shown


def test_only_what_has_changed_is_drawn_again(context: Context) -> None:
    changed, seen = train.look(context, None, {})
    assert set(changed) == set(train.nothing(context))
    assert train.look(context, None, seen)[0] == {}


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    run = TrainRun(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert run.metrics() == [{"step": 1, "loss": 0.5}]


def test_curves_of_long_runs_stay_small() -> None:
    rows = [{"step": i, **({"drift": 0.1} if i % 100 == 50 else {})} for i in range(10_000)]
    found = train_view.thinned(rows)
    assert len(found) < 520 and found[-1] is rows[-1]
    assert sum("drift" in row for row in found) == 100


@pytest.mark.parametrize(
    ("rate", "interval", "tone", "words"),
    [
        (0.7, [0.6, 0.8], "good", "tuned model wins 70%"), (0.3, [0.2, 0.4], "bad", "base model wins 70%"),
        (0.56, [0.48, 0.66], "plain", "may be chance"), (0.9, None, "plain", "Too little"),
    ],
)  # fmt: skip
def test_a_win_is_claimed_when_the_interval_allows_it(rate: float, interval: Any, tone: str, words: str) -> None:
    found = train_view.headline({"win_rate": rate, "win_rate_ci95": interval, "n_prompts": 8, "images_per_prompt": 2})
    assert found[0] == tone and words in found[1]


def test_the_difference_stands_beside_the_two_sides() -> None:
    """The sides' own intervals overlap where the paired difference is clear."""
    side = {"accuracy": 0.5, "accuracy_ci95": [0.46, 0.55]}
    told = train_view.outcome(
        {"win_rate": 0.55, "win_rate_ci95": [0.52, 0.58], "n_prompts": 256, "images_per_prompt": 2, "base": side,
         "tuned": side | {"accuracy": 0.58}, "delta": 0.082, "delta_of": "accuracy", "delta_ci95": [0.041, 0.123]}
    )  # fmt: skip
    assert "+8 points" in told and "95% interval +4 to +12" in told


def test_a_comparison_counts_the_pictures_that_are_there(tmp_path: Path, begin: Callable[..., Job]) -> None:
    """3 of base and 1 of the tuned model of 8; before anything is known the page says 0."""
    begin("long", "judge-1")
    folder = tmp_path / "judge-1"
    assert "0 of 0 pictures" in train_view.verdict(folder, set())
    (folder / "asked.json").write_text('{"pictures": 8}')
    for side, there in (("base", 3), ("tuned", 1)):
        (folder / "out" / side / "images").mkdir(parents=True)
        for number in range(there):
            (folder / "out" / side / "images" / f"{number}.png").touch()
    assert train_runs.drawn(folder) == (4, 8)
    assert "4 of 8 pictures" in train_view.verdict(folder, set())


def test_better_and_worse_pictures_take_turns() -> None:
    """A page of winners only would lie: losers come in between as long as there are any."""
    rows = [{"win": win, "n": n} for n, win in enumerate([1.0, 1.0, 1.0, 0.0, 0.5, None])]
    assert [row["n"] for row in train_view._picked(rows)] == [0, 3, 1, 2, 4, 5]


# who may


class Somebody:
    def __init__(self, **cookies: str) -> None:
        self.cookies = cookies


def test_events_are_for_operators_whatever_the_page_shows(tmp_path: Path) -> None:
    """Every event goes through ``check``: a forged call without a log-in is refused."""
    url = f"sqlite:///{tmp_path}/p.db"
    app_server.fill(url, tmp_path / "images", prompts=1, each=2)
    users = app_server.people(tmp_path / "users", ada="annotator", olga="operator")
    with app_server.context(url, users) as made:
        wires = Wires(made)
        with pytest.raises(Refused):
            wires.check(Somebody())
        for name, role in (("ada", "annotator"), ("olga", "operator")):
            found = made.people.log_in(name, f"{name}-password")
            assert found is not None and found[0].role == role
            request = Somebody(**{made.people.cookie: found[1]})
            if role == "operator":
                assert wires.check(request) == "human:olga"
            else:
                with pytest.raises(Refused, match="operators"):
                    wires.check(request)


# the real thing


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_votes_to_an_adapter_that_is_judged(tmp_path: Path) -> None:
    """`visfeedback train` and `visfeedback evaluate` as processes: stopped, resumed, finished, compared, packed."""
    from visfeedback.cli import label
    from visfeedback.cli.console import Console
    from visfeedback.cli.generate import run as generate

    console = Console(quiet=True)
    images, url = str(tmp_path / "images"), f"sqlite:///{tmp_path}/p.db"
    generate(["--model", "shapes:sd", "--prompts", "shapes:train:8", "--per-prompt", "3", "--steps", "3", "--out",
              images], console)  # fmt: skip
    label.run(["--store", url, "--judge", "simulated:shapes", "--images", images, "--pairs", "all", "--tie-band", "0"],
              console)  # fmt: skip
    with app_server.context(url) as made:
        made.model = "shapes:sd"
        run = _train_with_a_break(made)
        changed, seen = train.look(made, "one", {})
        assert "has learned" in changed["progress"] and "Pairs ranked right" in changed["curves"]
        assert "Before and after 60 steps" in changed["pictures"]
        assert train.look(made, "one", seen)[0] == {}
        packed = zipfile.ZipFile(run.archive(made.folder / "exports")).namelist()
        assert "adapter/pytorch_lora_weights.safetensors" in packed
        train.compare(made, "one", "shapes:heldout:2", 1, "shapes_clip")
        folder = run.judgings()[0]
        until(lambda: not Job(folder).running, 200)
        told = train_view.verdict(folder, set())
        assert Job(folder).state == "finished", Job(folder).tail()
        assert "Win rate of the tuned model" in told and "Mean shapes_clip" in told and told.count("<img") >= 4


def _train_with_a_break(made: Context) -> TrainRun:
    """60 steps, stopped on the way when they are slow enough for that, and resumed."""
    train.start(made, "one", 60, 60, 4)
    run = train_runs.find(made.runs, "one")
    until(lambda: run.metrics() or not run.train.running, 200)
    train.stop(made, "one")
    until(lambda: not run.train.running, 100)
    assert run.train.state == "stopped" and 0 < run.metrics()[-1]["step"] < 60, run.train.tail()
    train.resume(made, "one")
    until(lambda: not run.train.running, 300)
    assert run.train.state == "finished", run.train.tail()
    steps = [row["step"] for row in run.metrics()]
    assert steps == list(range(1, 61))
    assert sys.executable not in run.settings.read_text()
    return run
