"""`visfeedback generate --like --dislike`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from visfeedback import cli
from visfeedback.sampling.samples import open_image, read_samples


@pytest.fixture(autouse=True)
def keep_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visfeedback.cli.console.calm", lambda *_: None)


def run(*args: object) -> int:
    return cli.main(["generate", *map(str, args)])


def test_references_steer_and_are_recorded(tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another image than without; its sample says which references with which settings; a folder mixes neither."""
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    Image.new("RGB", (20, 16), "red").save(red)
    Image.new("RGB", (16, 16), "blue").save(blue)
    call = ("--model", tiny_sd, "--prompts", "a red dog", "--steps", 3, "--device", "cpu", "--seed", 3)
    assert run(*call, "--out", tmp_path / "plain") == 0
    likes = ("--like", red, "--dislike", blue, "--fabric.strength", 0.9)
    assert run(*call, "--out", tmp_path / "steered", *likes) == 0
    [plain], [steered] = read_samples(tmp_path / "plain"), read_samples(tmp_path / "steered")
    assert plain.call == {}
    recorded = steered.call["fabric"]
    assert [ref["source"] for ref in recorded["liked"] + recorded["disliked"]] == [str(red), str(blue)]
    assert recorded["strength"] == 0.9
    assert open_image(plain, tmp_path / "plain").tobytes() != open_image(steered, tmp_path / "steered").tobytes()
    assert run(*call, "--out", tmp_path / "steered", *likes, "--json") == 0
    assert json.loads(capsys.readouterr().out)["made"] == 0
    for other in ((), (*likes[:-1], 0.5), ("--like", blue)):
        assert run(*call, "--out", tmp_path / "steered", *other) == 2
        assert "made with call" in capsys.readouterr().err
    assert run(*call, "--out", tmp_path / "plain", *likes) == 2


def test_wrong_references_are_one_line(tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("--model", tiny_sd, "--prompts", "a cat", "--out", tmp_path / "out", "--device", "cpu")
    for flags, words in (
        (("--like", "nowhere.png"), "no reference image nowhere.png"),
        (("--like", "https://example.org/a.png"), "is an address"),
        (("--fabric.strength", 2), "strength"),
        (("--fabric.window", 0.9, 0.1), "start <= end"),
        (("--fabric.strength", 0.3), "give --like or --dislike"),
    ):
        assert run(*call, *flags) == 2, flags
        line = capsys.readouterr().err
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        assert words in line
    assert not (tmp_path / "out").exists()


def test_the_text_of_the_image_itself_is_no_neighbours(tiny_sd: Path, tmp_path: Path) -> None:
    """Under --fabric.prompt None an image is the same whatever else is drawn in its run."""
    Image.new("RGB", (20, 16), "red").save(tmp_path / "red.png")
    (tmp_path / "p.txt").write_text("two blue cups\na red dog\n")
    call = (
        "--model",
        tiny_sd,
        "--steps",
        2,
        "--device",
        "cpu",
        "--like",
        tmp_path / "red.png",
        "--fabric.prompt",
        None,
    )
    assert run(*call, "--prompts", tmp_path / "p.txt", "--out", tmp_path / "two") == 0
    assert run(*call, "--prompts", "a red dog", "--out", tmp_path / "one") == 0
    assert read_samples(tmp_path / "two")[1].id == read_samples(tmp_path / "one")[0].id
