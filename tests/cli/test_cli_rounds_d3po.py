"""D3PO rounds of the app: a LoRA that learns from the marks between rounds, beside a model that nobody touches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import app_server
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from visfeedback.app import board_rounds as rounds
from visfeedback.app.choosing import Asking
from visfeedback.app.context import Context
from visfeedback.app.rounds import Session
from visfeedback.cli import _rounds, _rounds_d3po
from visfeedback.cli.collect_live import Live, Painter
from visfeedback.config import merge
from visfeedback.plugins import InputError
from visfeedback.sampling.trajectories import read_trajectory
from visfeedback.training import fit as training
from visfeedback.training.settings import Data
from visfeedback.training.stored_paths import load_paths
from visfeedback.types.records import Prompt

ADA = "human:ada"
SMALL = {"rollout": {"steps": 4, "guidance": 1.0}, "optim": {"steps": 2}, "lora": {"rank": 2, "targets": ("to_q",)}}
"""laid over an engine's settings: three learned steps of a path, two optimizer steps"""
Run = Callable[..., Context]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """``context = run("shapes:sd")``: a server on the one store; a second call is the server after kill -9."""
    opened: list[Any] = []

    def start(model: str | Path) -> Context:
        opened.append(app_server.context(f"sqlite:///{tmp_path}/p.db"))
        made = opened[-1].__enter__()
        live = Live(steps=1, device="cpu")
        made.model = str(model)
        made.generator = Painter(made.model, (), [Prompt.of("x")], live, Asking(), made.store, made.desk)
        made.rounds = _rounds.rounds(made.generator)  # type: ignore[arg-type]
        engine(made).table = merge(engine(made).table, SMALL)
        return made

    yield start
    for one in opened:
        one.__exit__(None, None, None)


def engine(context: Context) -> _rounds_d3po.D3PORounds:
    return context.rounds.engines["d3po"]  # type: ignore[union-attr, return-value]


def begin(context: Context, **more: Any) -> Session:
    values = {"prompt": "a blue square", "images": 3, "seed": 1, "strength": 0.5, "engine": "d3po"} | more
    return rounds.begin(context, ADA, lambda text: None, **values)


def follow(context: Context, session: Session, *marks: int, said: Any = lambda text: None, after: int = -1) -> Session:
    return rounds.follow(context, ADA, session.id, session.rounds[after].number, list(marks), said)


def folder(context: Context, session: Session) -> Path:
    return context.folder / "rounds" / session.id


def learned(context: Context, session: Session, number: int) -> list[Path]:
    """The LoRA files that were learned from a round."""
    return sorted(folder(context, session).glob(f"round-{number}/learned-*/adapter/*.safetensors"))


def dark(context: Context, session: Session) -> list[int]:
    """Marks of a person who likes the darkest picture of the last round and dislikes the brightest."""
    samples = rounds.sessions(context).samples(session, session.rounds[-1].number)
    light = [np.asarray(Image.open(sample.path)).mean() for sample in samples]
    return [1 if value == min(light) else -1 if value == max(light) else 0 for value in light]


def paths(context: Context, session: Session, number: int) -> list[dict[str, torch.Tensor]]:
    drawn = folder(context, session) / f"round-{number}"
    return [read_trajectory(drawn, name)[0] for name in session.at(number).sample_ids]


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    parts = ("unet", "vae", "text_encoder")
    return {f"{part}.{k}": v.clone() for part in parts for k, v in getattr(pipe, part).state_dict().items()}


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.slow
def test_three_rounds_with_somebody_who_likes_dark_pictures(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of the other tabs keeps every bit, name and image. A second session of the same wishes and marks, in a
    server that is new for every round and killed after the first of two learning steps, ends at the same bits."""
    context = run("shapes:sd")
    painter: Any = context.generator
    before, image = weights(painter.pipe), painter.draw([Prompt.of("a circle")], [3])[0]
    session, said = begin(context), []
    for _ in range(2):
        session = follow(context, session, *dark(context, session), said=said.append)
    assert len(session.rounds) == 3
    assert [line for line in said if "step" in line] == [
        f"Learning from the marks of round {n}: step {i} of 2." for n in (1, 2) for i in range(3)
    ]
    now = weights(painter.pipe)
    assert before.keys() == now.keys() and all(torch.equal(before[name], now[name]) for name in now)
    assert painter.draw([Prompt.of("a circle")], [3])[0].tobytes() == image.tobytes()
    _learns(context, session)

    other = run("shapes:sd")
    again = begin(other)
    save = training.Training.save

    def dies(self: Any) -> None:
        save(self)
        raise Killed

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(training.Training, "save", dies)
            follow(other, again, *dark(other, again))
        other = run("shapes:sd")
        again = follow(other, again, *dark(other, again))
    assert [one.sample_ids for one in again.rounds] == [one.sample_ids for one in session.rounds]
    for number in range(2):
        one, two = (learned(context, which, number)[0].read_bytes() for which in (session, again))
        assert one == two


def _learns(context: Context, session: Session) -> None:
    """Every round's learning moves B away from 0 or from what it was. Round 1 is drawn by the reference, so both
    log-probabilities of its paths agree; of round 3 they do not, and its reference is still the bare model."""
    from visfeedback.backbones.load import load
    from visfeedback.sampling.rollout import Rollouts, noisy_steps, path_log_probs

    files = [load_file(learned(context, session, number)[0]) for number in range(2)]
    moved = [name for name in files[0] if "lora_B" in name]
    assert all(files[0][name].any() and not torch.equal(files[0][name], files[1][name]) for name in moved)
    gaps = [max((p["log_prob"] - p["reference_log_prob"]).abs().max() for p in paths(context, session, number))
            for number in range(3)]  # fmt: skip
    assert gaps[0] < 1e-5 < gaps[2]
    bare, found = load("shapes:sd", device="cpu"), paths(context, session, 2)
    count, walk = len(found), read_trajectory(folder(context, session) / "round-2", session.rounds[2].sample_ids[0])[1]
    whole = Rollouts(
        latents=torch.stack([p["latents"] for p in found]), t=torch.stack([p["t"] for p in found]),
        log_prob=torch.stack([p["log_prob"] for p in found]), condition=bare.encode_text(["a blue square"] * count),
        scores=torch.zeros(count), group=torch.zeros(count, dtype=torch.long), weight=torch.ones(count),
        eta=walk.eta,
    )  # fmt: skip
    again = path_log_probs(bare, whole, noisy_steps(bare.process, walk))
    assert (again - torch.stack([p["reference_log_prob"] for p in found])).abs().max() < 1e-5


def test_liked_over_unmarked_over_disliked(run: Run, tiny_sd: Path) -> None:
    """Marks 0, 1, -1 are three pairs: the second image beats both others, the first one beats the third. What the
    store has is one like and one dislike, as after any round."""
    context = run(tiny_sd)
    session = follow(context, begin(context), 0, 1, -1)
    drawn = folder(context, session) / "round-0"
    [votes] = drawn.glob("marks-*.db")
    found = load_paths(Data(paths=str(drawn), store=f"sqlite:///{votes}"))
    assert [path.better for path in found] == [(None, 0.0, 1.0), (1.0, None, 1.0), (0.0, 0.0, None)]
    assert sorted(record.values for record in context.store.feedback()) == [(-1.0,), (1.0,)]


def test_the_adapter_is_found_and_loads_anywhere(run: Run, tiny_sd: Path) -> None:
    """What the tab shows is a folder that a stock pipeline loads, and the samples say that it drew them."""
    from diffusers import StableDiffusionPipeline

    context = run(tiny_sd)
    session = begin(context)
    assert "--adapter" not in rounds.grid(context, session, 0)
    session = follow(context, session, 1, -1, 0)
    sample = rounds.sessions(context).samples(session, 1)[0]
    assert Path(sample.adapter) == learned(context, session, 0)[0].parent
    assert f"--model {tiny_sd} --adapter {sample.adapter} --prompts" in rounds.grid(context, session, 1)
    assert (sample.call["session"], sample.call["round"]) == (session.id, 1)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.load_lora_weights(sample.adapter)
    assert "default_0" in pipe.unet.peft_config


@pytest.mark.parametrize(("marks", "strength"), [((0, 0, 0), 0.5), ((1, 1, 1), 0.5), ((1, 0, -1), 0.0)])
def test_without_a_preference_nothing_is_learned(
    run: Run, tiny_sd: Path, marks: tuple[int, ...], strength: float
) -> None:
    context, said = run(tiny_sd), []
    session = follow(context, begin(context, strength=strength), *marks, said=said.append)
    assert said[-1] == "Drawing 3 images with the model as it is."
    assert learned(context, session, 0) == [] and rounds.sessions(context).samples(session, 1)[0].adapter == ""
    assert not set(session.rounds[0].sample_ids) & set(session.rounds[1].sample_ids)


@pytest.mark.slow
def test_other_marks_are_learned_anew(run: Run, tiny_sd: Path) -> None:
    """Back in round 1 and on with the same marks: nothing is learned again, and new images are drawn by the same LoRA.
    Other marks have a LoRA of their own, and one after it for what followed."""
    context, said = run(tiny_sd), []
    session = follow(context, begin(context), 1, 0, -1)
    session = follow(context, session, 1, 0, -1, after=0, said=said.append)
    first, second = (rounds.sessions(context).samples(session, number)[0] for number in (1, 2))
    assert len(learned(context, session, 0)) == 1 and not any("Learning" in line for line in said)
    assert first.adapter == second.adapter and first.id != second.id
    rounds.mark(context, ADA, session.id, 0, 0, -1)
    follow(context, session, 0, 1, -1, after=1)
    assert len(learned(context, session, 0)) == 2 and len(learned(context, session, 1)) == 1


def test_a_round_that_nobody_saw_is_drawn_by_what_is_marked_now(
    run: Run, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between drawing and the store; then the marks change: the images on the disk are not the ones shown."""
    context = run(tiny_sd)
    session = begin(context)

    def dies(*values: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(context.store), "add_samples", dies)
        follow(context, session, 1, 0, -1)
    unseen = (folder(context, session) / "round-1/samples.jsonl").read_text()
    session = follow(context, session, -1, 0, 1)
    assert (folder(context, session) / "round-1/samples.jsonl").read_text() != unseen
    assert all(name not in unseen for name in session.rounds[1].sample_ids)


def test_a_session_needs_its_paths_and_its_model(run: Run, tiny_sd: Path, make_tiny_sd: Any) -> None:
    context = run(tiny_sd)
    session = begin(context)
    with pytest.raises(InputError, match=r"round 1 was drawn with .*begin a new session") as error:
        follow(run(make_tiny_sd(seed=1)), session, 1, 0, -1)
    assert "\n" not in str(error.value)
    (folder(context, session) / "round-0/samples.jsonl").unlink()
    with pytest.raises(InputError, match=r"the paths of round 1 are not in .*begin a new session"):
        follow(context, session, 1, 0, -1)


def test_engines_that_cannot_draw_with_the_model_are_left_out(run: Run, tiny_sd: Path) -> None:
    """`sd3` stands for any family without log-probabilities; FABRIC asks for the attention layers by itself."""
    painter: Any = run(tiny_sd).generator
    assert list(_rounds.rounds(painter).engines) == ["fabric", "d3po"]
    painter._loaded = replace(painter._loaded, family="sd3")
    assert list(_rounds.rounds(painter).engines) == ["fabric"]
