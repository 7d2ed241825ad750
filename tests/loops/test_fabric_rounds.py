"""FABRIC in rounds on tiny networks: bookkeeping, arms, resuming; learning is measured on the shapes model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visfeedback import config, shapes
from visfeedback import prompts as sources
from visfeedback.loops import _journal, fabric_rounds
from visfeedback.loops._rounds_measures import measure
from visfeedback.loops._rounds_pictures import CELL, GAP, sheet, strip
from visfeedback.loops._rounds_summary import of_prompt
from visfeedback.loops._rounds_targets import hidden
from visfeedback.loops._users import UserSettings, invite
from visfeedback.loops.fabric_rounds import Settings, dropped, run
from visfeedback.plugins import InputError
from visfeedback.sampling.generate import derive_seed
from visfeedback.types.files import read_jsonl
from visfeedback.types.records import Prompt

PRESETS = Path(__file__).parents[2] / "configs" / "loops"


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
        assert row.from_target is None
        assert bool(row.picked) == (len(row.files) == 3)
    first = [found["a circle", arm, 0] for arm in ("fabric", "none")]
    pictures = [[opened(tmp_path / name).tobytes() for name in row.files] for row in first]
    assert pictures[0] == pictures[1]
    assert set(summary["arms"]) == {"fabric", "none", "best_of_n", "prompt_dropout"}
    assert summary["passes_per_round"] == [0, 4, 4]
    assert json.loads((tmp_path / "summary.json").read_text())["n_prompts"] == 2
    page = (tmp_path / "report.html").read_text()
    assert "Preference, FABRIC over no feedback" in page
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
    with pytest.raises(InputError, match=r"has loop\.rounds = 3, now it is 4"):
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
    with pytest.raises(InputError, match=r"likes 9 \+ dislikes 9 are more than the 2 images"):
        config.build(Settings, {"loop": {"images": 2, "likes": 9, "dislikes": 9}}, "test")
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


def test_hidden_images_of_a_world_show_the_prompt_and_are_its_own() -> None:
    """The renderer fills in what the prompt leaves open: the verifier finds the prompt right; one seed, one image."""
    asked = sources.load("shapes:heldout:8")
    user, again, other = (hidden("shapes", seed, pytest.fail) for seed in (0, 0, 1))
    for prompt in asked:
        assert shapes.verifier().verify(prompt.text, user(prompt)).right
        assert user(prompt).tobytes() == again(prompt).tobytes() != other(prompt).tobytes()
    with pytest.raises(InputError, match="cannot read the prompt 'a dog'"):
        user(Prompt.of("a dog"))


def test_hidden_images_from_files_and_from_the_model(tmp_path: Path) -> None:
    """The first image with the prompt's text; the model's own comes from a seed of no round."""
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a circle")
    user = hidden(str(tmp_path), 0, pytest.fail)
    assert user(Prompt.of("a circle")).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(InputError, match="has no image of 'a square'"):
        user(Prompt.of("a square"))
    with pytest.raises(InputError, match=r"no user\.targets 'nowhere'; expected model, shapes"):
        hidden("nowhere", 0, pytest.fail)
    seeds: list[int] = []
    hidden("model", 0, lambda prompt, seed: seeds.append(seed) or Image.new("RGB", (8, 8)))(Prompt.of("a circle"))
    assert seeds[0] not in [derive_seed(0, Prompt.of("a circle").id, number) for number in range(64000)]


def test_a_run_towards_hidden_images(settings: Settings, tmp_path: Path) -> None:
    """Each is kept beside the rounds and shown; of the best of n, what it shows is measured, too."""
    goals, out = tmp_path / "goals", tmp_path / "out"
    goals.mkdir()
    for name in ("a circle", "two squares"):
        Image.new("RGB", (32, 24), "red").save(goals / f"{name}.png")
        (goals / f"{name}.txt").write_text(name)
    user = UserSettings(kind="target", name="shapes_clip", targets=str(goals))
    with pytest.raises(InputError, match="no image of"):
        run(settings.model_copy(update={"user": user, "data": fabric_rounds.Data(prompts=("a cross",))}), out, False)
    shutil.rmtree(out)
    summary = run(settings.model_copy(update={"user": user}), out, False)
    assert len(list((out / "images" / "target").iterdir())) == 2
    assert all(row.from_target is not None and 0 <= row.from_target <= 1 for row in rows(out))
    arms = summary["arms"]
    assert [found["from_target"] is None for found in arms["best_of_n"]] == [False, False, False]
    assert arms["best_of_n"][2]["diversity"] != arms["none"][2]["diversity"]
    assert arms["best_of_n"][0]["diversity"] == arms["none"][0]["diversity"]
    page = (out / "report.html").read_text()
    assert "hidden image" in page
    assert "a hidden image of each prompt, compared by shapes_clip" in page
    assert 1000 < (out / "rounds.jpg").stat().st_size < 60_000


class Colours:
    """Features that are the mean colour."""

    def __call__(self, images: Any) -> np.ndarray:
        means = np.stack([np.asarray(image, float).mean(axis=(0, 1)) for image in images])
        return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_measures_of_a_round(tmp_path: Path) -> None:
    """Red and green: RMS difference sqrt(2/3), cosine 0. From a red hidden image of another size: 0 and sqrt(2/3), mean
    .408. Likeness to a liked red one: cosines 1 and 0, mean 1/2; nothing was disliked."""
    red, green = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 255, 0))
    red.save(tmp_path / "red.png")
    journal, prompt = _journal.Journal(tmp_path), Prompt.of("a circle")
    journal.add(_journal.Round(prompt_id=prompt.id, prompt="a circle", arm="fabric", round=0, files=("red.png",),
                               seeds=(1,), preferences=(1.0,), liked=("red.png",)))  # fmt: skip
    features: Any = Colours()
    found = measure([red, green], prompt, 1, tmp_path, journal, features, red.resize((16, 12)))
    expected = {"diversity": (2 / 3) ** 0.5, "alike": 0.0, "to_liked": 0.5, "from_target": (2 / 3) ** 0.5 / 2}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["to_disliked"] is None
    alone = measure([red], prompt, 0, tmp_path, journal, features, None)
    assert (alone["diversity"], alone["alike"], alone["to_liked"]) == (None, None, None)
    assert "from_target" not in alone


def test_pictures_of_rounds() -> None:
    """Small images grow by whole numbers (140 // 64 = 2), a liked one has a green frame, a disliked one a red one."""
    images = [Image.new("RGB", (64, 64), "black")] * 3
    page = sheet(images, [1, 0, -1])
    assert page.size == (2 * 128 + GAP, 2 * 128 + GAP)
    corner: list[Any] = [page.getpixel(place) for place in ((0, 0), (128 + GAP, 0), (0, 128 + GAP))]
    assert corner[0][1] > corner[0][0]
    assert corner[1] == (0, 0, 0)
    assert corner[2][0] > corner[2][1]
    assert max(sheet([Image.new("RGB", (1024, 512))], [0]).size) == CELL
    two = strip([("a circle", [page, page]), ("a square", [page])], ["round 0", "round 1"])
    assert two.width > two.height / 2 > 100


@pytest.mark.parametrize(("name", "kind", "prompts"), [("rounds", "tastes", 12), ("target", "target", 12),
                                                       ("reward", "reward", 24)])  # fmt: skip
def test_the_presets_are_whole(name: str, kind: str, prompts: int) -> None:
    path = PRESETS / f"fabric_{name}_shapes.toml"
    preset = config.build(Settings, config.read_toml(path), str(path))
    assert preset.user.kind == kind
    assert len([prompt for source in preset.data.prompts for prompt in sources.load(source)]) == prompts
