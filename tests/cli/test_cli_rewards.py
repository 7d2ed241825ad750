"""`visfeedback rewards`: the catalogue and the check."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from visfeedback.cli import main
from visfeedback.cli.rewards import bounds
from visfeedback.plugins import load, names


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visfeedback.cli.console.calm", lambda *_: None)


def test_the_catalogue_has_every_reward(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "list", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["rewards"]}
    assert set(found) == {name for name in names("rewards") if hasattr(load("rewards", name), "ABOUT")}
    assert {"shapes_clip", "shapes_verifier"} <= set(found)
    for entry in found.values():
        assert entry["measures"]
        assert entry["state"]
        assert entry["range"] not in {"", "by variant"}, f"{entry['name']}: give the module a RANGE"
    assert (found["shapes_clip"]["range"], found["shapes_clip"]["state"]) == ("-1 to 1", "ready")


def test_the_catalogue_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["rewards", "list"]) == 0
    seen = capsys.readouterr()
    assert seen.out == ""
    assert "typical" in seen.err
    for name in names("rewards"):
        assert f"\n{name} " in seen.err, "whole, also in a window of 80 letters"


def test_bounds_of_a_module() -> None:
    module = ModuleType("visfeedback.rewards.some")
    module.RANGE = (0.0, float("inf"))  # pyright: ignore[reportAttributeAccessIssue]
    assert bounds(module) == "0 to any"
    module.RANGE = "as its parts"  # pyright: ignore[reportAttributeAccessIssue]
    assert bounds(module) == "as its parts"
    assert bounds(ModuleType("visfeedback.rewards.other")) == "by variant"


def test_a_reward_that_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "check", "shapes_clip", "--device", "cpu", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert all(law["holds"] for law in answer["laws"])
    assert len(answer["laws"]) >= 8
    assert answer["origin"]["checkpoint_sha256"]


@pytest.fixture
def crooked(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A reward whose scores depend on the batch, with a published answer."""
    from visfeedback.rewards import shapes_clip

    class Crooked(shapes_clip.ShapesClip):
        def combine(self, images, texts, pairing="paired"):
            return super().combine(images - images.mean(0), texts, pairing)

    module = ModuleType("ours.crooked")

    def loaded(variant="", path="", device="cpu", dtype="fp32"):
        straight = shapes_clip.load(device=device)
        crooked = object.__new__(Crooked)
        crooked.__dict__.update(straight.__dict__)
        return crooked

    module.load = loaded  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr("visfeedback.plugins.load", lambda room, name: module)
    monkeypatch.setattr("visfeedback.cli.rewards.load", lambda room, name: module)
    return module


def test_a_reward_that_mixes_up_its_batch_is_found(crooked: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "check", "crooked", "--device", "cpu", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert "batch = singles" in answer["failed"]
    assert "breaks" in answer["error"]


def test_published_answers(crooked: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the pictures each answer is a law; without them one line says where they are."""
    from PIL import Image

    from visfeedback import rewards
    from visfeedback.rewards import imagereward

    picture = Image.new("RGB", (64, 64), "red")
    picture.save(tmp_path / "1.webp", lossless=True)
    torch.manual_seed(0)
    right = float(rewards.score(rewards.load("crooked"), [picture], ["a red circle"])[0])
    crooked.KNOWN_ANSWERS = (imagereward.KnownAnswer("a red circle", "1.webp", right),  # pyright: ignore
                             imagereward.KnownAnswer("a red circle", "1.webp", right + 0.1))  # fmt: skip
    crooked.KNOWN_TOLERANCE = 5e-3  # pyright: ignore[reportAttributeAccessIssue]
    main(["rewards", "check", "crooked", "--device", "cpu", "--images", str(tmp_path), "--json"])
    laws = json.loads(capsys.readouterr().out)["laws"][-2:]
    assert [law["holds"] for law in laws] == [True, False]
    main(["rewards", "check", "crooked", "--device", "cpu"])
    assert "2 scores were published for 1.webp" in capsys.readouterr().err
    assert main(["rewards", "check", "crooked", "--device", "cpu", "--images", str(tmp_path / "no")]) == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "write visfeedback rewards list, check NAME, or fit"),
        (["lst"], "no action 'lst' for rewards; did you mean 'list'?"),
        (["check"], "missing REWARD"),
        (["check", "nothing"], "no 'nothing' in rewards"),
        (["list", "stray"], "unexpected 'stray'"),
    ],
)
def test_wrong_input_is_one_line(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", *args]) == 2
    seen = capsys.readouterr().err
    assert said in seen
    assert seen.count("\n") == 1


def test_actions_are_no_verbs() -> None:
    """rewards_fit.py is an action of `rewards`, not a command."""
    from visfeedback.cli import verbs

    assert {"rewards", "score"} <= set(verbs())
    assert not any("_" in verb for verb in verbs())


def test_fit_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("visfeedback.cli.rewards_fit")
    module.run = lambda args, console: {"args": args}  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "visfeedback.cli.rewards_fit", module)
    monkeypatch.setattr("visfeedback.cli.rewards_fit", module, raising=False)
    from visfeedback.cli import rewards
    from visfeedback.cli.console import Console

    assert rewards.run(["fit", "--a", "1"], Console()) == {"args": ["--a", "1"]}
