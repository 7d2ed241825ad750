"""FABRIC in rounds on tiny networks: bookkeeping, arms, resuming; learning is measured on the shapes model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visfeedback import config
from visfeedback.loops import _journal, fabric_rounds
from visfeedback.loops._rounds_summary import of_prompt
from visfeedback.loops._users import UserSettings, invite
from visfeedback.loops.fabric_rounds import Settings, dropped, run
from visfeedback.plugins import InputError
from visfeedback.types.files import read_jsonl
from visfeedback.types.records import Prompt

PRESET = Path(__file__).parents[2] / "configs" / "loops" / "fabric_rounds_shapes.toml"


@pytest.fixture
def settings(tiny_sd: Path) -> Settings:
    return config.build(Settings, {
        "loop": {"rounds": 3, "images": 2}, "model": {"id": str(tiny_sd), "device": "cpu"},
        "data": {"prompts": ["a circle", "two squares", "a circle"]}, "generate": {"steps": 2},
    }, "test")  # fmt: skip


def rows(out: Path) -> list[_journal.Round]:
    return list(read_jsonl(out / "rounds.jsonl", _journal.Round))


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_every_arm_draws_the_same_seeds_and_likes_accumulate(settings: Settings, tmp_path: Path) -> None:
    """2 prompts x 3 arms x 3 rounds. 2 steps in the window: new references cost 2 passes each, 4 a round, of which a
    guided image (2 rows, 2 steps) could be drawn: best_of_n has 3 images then."""
    summary = run(settings, tmp_path, False)
    found = {(row.prompt, row.arm, row.round): row for row in rows(tmp_path)}
    assert len(found) == 18
    for (prompt, arm, number), row in found.items():
        fabric = found[prompt, "fabric", number]
        assert row.seeds[:2] == fabric.seeds
        assert row.passes == (0 if arm != "fabric" or number == 0 else 4)
        assert len(row.files) == (3 if arm == "none" and number else 2)
        assert all(opened(tmp_path / name).size == (16, 16) for name in row.files)
        assert set(row.liked) | set(row.disliked) == set(row.files[:2])
        best, worst = max(row.preferences[:2]), min(row.preferences[:2])
        assert row.preferences[row.files.index(row.liked[0])] == best if best > worst else True
        assert (row.to_liked is None) == (number == 0)
        assert row.diversity is not None
    first = [found["a circle", arm, 0] for arm in ("fabric", "none")]
    pictures = [[opened(tmp_path / name).tobytes() for name in row.files] for row in first]
    assert pictures[0] == pictures[1]
    assert set(summary["arms"]) == {"fabric", "none", "best_of_n", "prompt_dropout"}
    assert summary["passes_per_round"] == [0, 4, 4]
    assert json.loads((tmp_path / "summary.json").read_text())["n_prompts"] == 2
    page = (tmp_path / "report.html").read_text()
    assert "Preference, FABRIC over none" in page
    assert "round 2" in page


def test_a_resumed_run_is_the_uninterrupted_one(settings: Settings, tmp_path: Path, monkeypatch: Any) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(settings, whole, False)
    drawn, render = [], fabric_rounds.render

    def tired(*args: Any, **more: Any) -> Any:
        if len(drawn) == 8:
            raise KeyboardInterrupt
        drawn.append(1)
        return render(*args, **more)

    monkeypatch.setattr(fabric_rounds, "render", tired)
    with pytest.raises(KeyboardInterrupt):
        run(settings, parts, False)
    monkeypatch.setattr(fabric_rounds, "render", render)
    with pytest.raises(InputError, match="--resume"):
        run(settings, parts, False)
    with pytest.raises(InputError, match="differs"):
        run(settings.model_copy(update={"loop": fabric_rounds.Loop(rounds=4, images=2)}), parts, True)
    run(settings, parts, True)
    first, second = rows(whole), rows(parts)
    assert [row.files for row in first] == [row.files for row in second]
    for row in first:
        for name in row.files:
            a, b = (opened(folder / name).tobytes() for folder in (whole, parts))
            assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 2
    before = (parts / "rounds.jsonl").read_bytes()
    run(settings, parts, True)
    assert (parts / "rounds.jsonl").read_bytes() == before
    shutil.rmtree(parts / "images" / "none")
    run(settings, parts, True)
    assert len(list((parts / "images" / "none").iterdir())) == len(list((whole / "images" / "none").iterdir()))


def test_best_of_n_shows_what_the_user_prefers() -> None:
    """Of preferences .1 .9 .5 two are shown: .9 and .5, mean .7; no feedback shows the first two, mean .5. The best so
    far of no feedback is the best of its own images."""
    settings = config.build(Settings, {"loop": {"images": 2}}, "test")
    row = _journal.Round(prompt_id="p", prompt="a circle", arm="none", round=0, files=("a", "b", "c"), seeds=(1, 2, 3),
                         preferences=(0.1, 0.9, 0.5))  # fmt: skip
    later = row.model_copy(update={"round": 1, "preferences": (0.2, 0.3, 1.0)})
    assert of_prompt([row], "best_of_n", "preference", 0, settings) == pytest.approx({"p": 0.7})
    assert of_prompt([row], "none", "preference", 0, settings) == pytest.approx({"p": 0.5})
    assert of_prompt([row, later], "none", "best_so_far", 1, settings) == {"p": 0.9}
    assert of_prompt([row, later], "best_of_n", "best_so_far", 1, settings) == {"p": 1.0}
    assert of_prompt([row], "none", "met", 0, settings) == {"p": 0.5}


@pytest.mark.parametrize(("kind", "name"), [("tastes", "shapes"), ("verifier", "shapes"), ("reward", "shapes_clip"),
                                            ("target", "shapes_clip")])  # fmt: skip
def test_users_prefer_what_they_like(kind: Any, name: str) -> None:
    """A big red circle on black against a small blue one on white, for the prompt that asks for the first."""
    from PIL import ImageDraw

    wanted, other = Image.new("RGB", (64, 64), "black"), Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(wanted).ellipse((20, 20, 44, 44), fill=(220, 40, 40))
    ImageDraw.Draw(other).ellipse((27, 27, 37, 37), fill=(40, 80, 220))
    wish = invite(UserSettings(kind=kind, name=name), lambda prompt: wanted, "cpu")
    first, second = wish(Prompt.of("a red circle on a black background"), [wanted, other])
    assert first > second


def test_wrong_users_and_folders(settings: Settings, tmp_path: Path) -> None:
    for user, words in (
        ({"name": "nowhere"}, "no world 'nowhere'"),
        ({"tastes": {"bigg": 1.0}}, "no taste 'bigg'"),
        ({"kind": "reward", "name": "nothing"}, "no 'nothing' in rewards"),
    ):
        with pytest.raises(InputError, match=words):
            invite(UserSettings(**user), lambda prompt: Image.new("RGB", (8, 8)), "cpu")
    with pytest.raises(InputError, match="expected weights"):
        config.build(UserSettings, {"tastes": {"big": 0.0}}, "test")
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError):
            run(settings, tmp_path, resume)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_dropped_words_are_seeded_and_one_is_left() -> None:
    text = "a big red circle on a black background"
    assert dropped(text, 0.0, 1) == text
    assert dropped(text, 0.5, 1) == dropped(text, 0.5, 1)
    assert len({dropped(text, 0.5, seed) for seed in range(8)}) > 1
    assert dropped(text, 1.0, 1) in text.split()


def test_the_preset_is_whole() -> None:
    preset = config.build(Settings, config.read_toml(PRESET), str(PRESET))
    assert preset.user.tastes == {"big": 1.0, "dark": 1.0, "warm": 1.0}
    assert len(preset.data.prompts) == 12
