"""Runs on disk: they resume, grow, share and lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards import score
from visfeedback.scoring import locks, tables
from visfeedback.scoring.run import Done, Run
from visfeedback.scoring.settings import ScoreSettings
from visfeedback.scoring.sources import open_source

TEXTS = ("a red circle", "two blue squares", "a green triangle", "a yellow cross")


def go(folder: Path, loaded: Sequence[Any], out: Path, *prompts: str, **more: Any) -> Done:
    """A run in shards of 4, batches of 3."""
    settings = ScoreSettings(**{"shard": 4, "batch_size": 3, "workers": 2, **more.pop("settings", {})})
    return Run(open_source(str(folder), settings), loaded, out, prompts, settings=settings, **more).go()


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for table in tables.read(out) for row in table.to_pylist()]


def scores(out: Path) -> dict[tuple[str, str | None, str], float]:
    found = {(row["image"], row["prompt"], row["reward"]): row["score"] for row in rows(out)}
    assert len(found) == len(rows(out)), "no row twice"
    return found


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", list(tables.FORMATS))
def test_the_table_is_what_the_plain_way_gives(folder: Path, tmp_path: Path, toy, suffix: str) -> None:
    """All columns of the contract, one row for each image and reward, in order; nothing else is left behind."""
    loaded = [rewards.load("shapes_clip"), toy(), rewards.load("shapes_verifier")]
    out = tmp_path / "made" / f"scores{suffix}"
    done = go(folder, loaded, out)
    found = rows(out)
    images = [Image.open(path) for path in sorted(folder.glob("*.png"))]
    prompts = [TEXTS[n % 4] for n in range(10)]
    for reward in loaded:
        plain = score(reward, images, prompts).tolist()
        assert [row["score"] for row in found if row["reward"] == reward.name] == pytest.approx(plain, abs=1e-6)
    assert [row["image"] for row in found] == [f"{n:02}.png" for n in range(10) for _ in loaded]
    assert [row["reward"] for row in found[:3]] == ["shapes_clip", "toy", "shapes_verifier"]
    first = loaded[0].origin
    assert found[0]["checkpoint_sha256"] == first.checkpoint_sha256
    assert (found[0]["model"], found[0]["dtype"], found[0]["preprocessing"]) == (
        first.model, first.dtype, loaded[0].preprocessing,
    )  # fmt: skip
    assert (done.images, done.scored, done.failed) == (9, 30, [])
    assert files(out.parent) == [out.name]


def test_image_sha256_is_of_the_bytes(folder: Path, tmp_path: Path, toy) -> None:
    import hashlib

    go(folder, [toy()], tmp_path / "o.csv")
    for row in rows(tmp_path / "o.csv"):
        assert row["image_sha256"] == hashlib.sha256((folder / row["image"]).read_bytes()).hexdigest()


def test_duplicates_are_read_once_and_have_rows_of_their_own(folder: Path, tmp_path: Path, toy) -> None:
    """00 and 07 are the same bytes; with one prompt for all they are one unit of work and two rows."""
    reward = toy()
    done = go(folder, [reward], tmp_path / "o.csv", "x")
    assert (sum(reward.batches), done.scored) == (9, 9)
    found = scores(tmp_path / "o.csv")
    assert len(found) == 10
    assert found["00.png", "x", "toy"] == found["07.png", "x", "toy"]


def test_a_matrix(folder: Path, tmp_path: Path, toy) -> None:
    """10 images x 3 prompts, prompt by prompt for each image; without prompts all of the images' own."""
    go(folder, [toy()], tmp_path / "o.parquet", "a", "b", "c", pairing="matrix")
    found = rows(tmp_path / "o.parquet")
    assert [(row["image"], row["prompt"]) for row in found] == [(f"{n:02}.png", p) for n in range(10) for p in "abc"]
    plain = score(toy(), [Image.open(folder / "03.png")], ["a", "b", "c"], "matrix")[0].tolist()
    assert [row["score"] for row in found if row["image"] == "03.png"] == pytest.approx(plain, abs=1e-6)
    go(folder, [toy()], tmp_path / "own.parquet", pairing="matrix")
    assert {row["prompt"] for row in rows(tmp_path / "own.parquet")} == set(TEXTS)


def test_prompts_given_for_each_image(folder: Path, tmp_path: Path, toy) -> None:
    go(folder, [toy()], tmp_path / "o.csv", *(f"p{n}" for n in range(10)), pairing="paired")
    assert [row["prompt"] for row in rows(tmp_path / "o.csv")] == [f"p{n}" for n in range(10)]


def test_the_same_command_again_computes_nothing(folder: Path, tmp_path: Path, toy) -> None:
    out = tmp_path / "o.parquet"
    go(folder, [toy()], out)
    before = rows(out)
    reward = toy()
    done = go(folder, [reward], out)
    assert (done.scored, reward.preprocessed, reward.prompts) == (0, 0, [])
    assert rows(out) == before


@pytest.mark.parametrize("suffix", list(tables.FORMATS))
def test_a_table_grows_by_what_is_new(folder: Path, tmp_path: Path, toy, draw, suffix: str) -> None:
    """One more image and one more reward: 10 scores are kept, 12 are computed."""
    out = tmp_path / f"o{suffix}"
    go(folder, [toy()], out, "x")
    before = scores(out)
    draw("a red cross", 99).save(folder / "05b.png")
    first, second = toy(), toy("second", encoder="second")
    done = go(folder, [first, second], out, "x")
    found = scores(out)
    assert done.scored == 1 + 10
    assert (sum(first.batches), sum(second.batches)) == (1, 10)
    assert len(found) == 22
    assert {key: found[key] for key in before} == before


def test_more_prompts_in_a_matrix(folder: Path, tmp_path: Path, toy) -> None:
    out = tmp_path / "o.parquet"
    go(folder, [toy()], out, "a", "b", pairing="matrix")
    reward = toy()
    go(folder, [reward], out, "c", "b", "a", pairing="matrix")
    assert reward.prompts == ["c"]
    assert len(scores(out)) == 30


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: None, "of the reward toy"),
        (lambda folder: (folder / "03.png").unlink(), "of the image 03.png"),
        (lambda folder: Image.new("RGB", (9, 9)).save(folder / "03.png"), "of the image 03.png"),
    ],
)
def test_a_table_with_other_scores_is_not_overwritten(folder: Path, tmp_path: Path, toy, change, said: str) -> None:
    out = tmp_path / "o.parquet"
    go(folder, [toy()], out, "x")
    before = out.read_bytes()
    change(folder)
    loaded = [toy("other")] if "reward" in said else [toy()]
    with pytest.raises(InputError, match="give another --out") as error:
        go(folder, loaded, out, "x")
    assert said in str(error.value)
    assert out.read_bytes() == before
    assert files(tmp_path) == ["cache", "o.parquet", "pictures"], "nothing is left lying about"


def test_other_prompts_are_another_table(folder: Path, tmp_path: Path, toy) -> None:
    out = tmp_path / "o.parquet"
    go(folder, [toy()], out, "x")
    with pytest.raises(InputError, match="with the prompt 'x' that this command does not ask for"):
        go(folder, [toy()], out, "y")


def test_weights_of_the_same_hash_under_another_path_are_the_same(folder: Path, tmp_path: Path, toy) -> None:
    go(folder, [toy()], tmp_path / "o.parquet")
    moved = toy()
    moved.origin = moved.origin.model_copy(update={"model": "/elsewhere/toy"})
    assert go(folder, [moved], tmp_path / "o.parquet").scored == 0
    moved.origin = moved.origin.model_copy(update={"revision": "files-0123abcd"})
    with pytest.raises(InputError, match=r"of the reward toy \(.*\) with other weights, configuration or precision"):
        go(folder, [moved], tmp_path / "o.parquet")


def test_bad_items_fail_alone_and_are_tried_again(folder: Path, tmp_path: Path, toy) -> None:
    """Torn, empty, missing and without a prompt: four lines, six images scored; mended, they are scored too."""
    out = tmp_path / "o.csv"
    good = {name: (folder / name).read_bytes() for name in ("01.png", "02.png", "03.png")}
    (folder / "01.png").write_bytes(good["01.png"][:50])
    (folder / "02.png").write_bytes(b"")
    (folder / "03.png").unlink()
    listed = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text("".join(line for line in listed.splitlines(True) if "04.png" not in line))
    done = go(folder, [toy(), toy("blind", encoder="blind", reads_prompt=False)], out)
    errors = {(one["image"], one["reward"]): one["error"] for one in done.failed}
    assert set(errors) == {("01.png", None), ("02.png", None), ("03.png", None), ("04.png", "toy")}
    assert "damaged" in errors["01.png", None]
    assert "empty" in errors["02.png", None]
    assert "no file" in errors["03.png", None]
    assert "no prompt" in errors["04.png", "toy"]
    assert [json.loads(line) for line in (tmp_path / "o.csv.failed.jsonl").read_text().splitlines()] == done.failed
    assert len(rows(out)) == 6 * 2 + 1
    for name, data in good.items():
        (folder / name).write_bytes(data)
    (folder / "metadata.jsonl").write_text(listed)
    with pytest.raises(InputError, match=r"04\.png with the prompt None"):
        go(folder, [toy(), toy("blind", encoder="blind", reads_prompt=False)], out)
    os.unlink(out)
    done = go(folder, [toy(), toy("blind", encoder="blind", reads_prompt=False)], out)
    assert (done.failed, len(rows(out))) == ([], 20)
    assert not (tmp_path / "o.csv.failed.jsonl").exists()


def test_failed_items_alone_are_tried_again(folder: Path, tmp_path: Path, toy) -> None:
    good = (folder / "01.png").read_bytes()
    (folder / "01.png").write_bytes(b"")
    go(folder, [toy()], tmp_path / "o.csv")
    (folder / "01.png").write_bytes(good)
    reward = toy()
    assert go(folder, [reward], tmp_path / "o.csv").scored == 1
    assert sum(reward.batches) == 1
    assert not (tmp_path / "o.csv.failed.jsonl").exists()


def test_notes_and_no_images_and_no_prompts(folder: Path, tmp_path: Path, toy) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    done = go(folder, [toy()], tmp_path / "o.csv", "x")
    assert done.notes == ["moving.gif: 2 frames; only the first was scored"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no images there"):
        go(empty, [toy()], tmp_path / "e.csv", "x")
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(InputError, match="no image has a prompt, and toy needs one; give --prompts"):
        go(folder, [toy()], tmp_path / "n.csv")
    go(folder, [toy(reads_prompt=False)], tmp_path / "n.csv")
    assert {row["prompt"] for row in rows(tmp_path / "n.csv")} == {None}


@pytest.mark.parametrize(
    ("prompts", "pairing", "said"),
    [
        (("a", "b"), None, "2 prompts: add --pairing paired"),
        (("a", "b"), "one", "exactly one prompt, --prompts gives 2"),
        ((), "one", "exactly one prompt, --prompts gives 0"),
        (("a", "b"), "paired", "10 images and 2 prompts"),
        (tuple("abcdefghijkl"), "paired", "10 images and 12 prompts"),
    ],
)
def test_prompts_and_pairing_that_do_not_fit(folder: Path, tmp_path: Path, toy, prompts, pairing, said: str) -> None:
    with pytest.raises(InputError, match=said):
        go(folder, [toy()], tmp_path / "o.csv", *prompts, pairing=pairing)
    assert not (tmp_path / "o.csv").exists()


def test_a_reward_named_twice_or_none(folder: Path, tmp_path: Path, toy) -> None:
    with pytest.raises(InputError, match="names toy twice"):
        go(folder, [toy(), toy()], tmp_path / "o.csv")
    with pytest.raises(InputError, match="no rewards"):
        go(folder, [], tmp_path / "o.csv")


class Stopping:
    """Raises ``error`` in the batch after ``batches``."""

    def __init__(self, inner, batches: int, error: BaseException) -> None:
        self._inner, self._left, self._error = inner, batches, error

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        self._left -= 1
        if self._left < 0:
            raise self._error
        return self._inner.encode_images(pixels)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("no server"), RuntimeError("a bug")])
def test_a_stopped_run_goes_on_where_it_was(folder: Path, tmp_path: Path, toy, error: BaseException) -> None:
    """9 contents in shards of 4 and batches of 3: 3 + 1, 3, stop. Seven are kept, the last two computed."""
    out = tmp_path / "o.parquet"
    with pytest.raises(type(error)):
        go(folder, [Stopping(toy(), 3, error)], out, "x", settings={"cache": "off"})
    assert not out.exists()
    reward = toy()
    done = go(folder, [reward], out, "x", settings={"cache": "off"})
    assert (done.scored, sum(reward.batches)) == (2, 2)
    assert len(scores(out)) == 10
    assert files(tmp_path) == ["o.parquet", "pictures"]


def test_a_stopped_run_goes_on_after_the_request_grew(folder: Path, tmp_path: Path, toy, draw) -> None:
    """Another image and another reward in between: what the stopped run had computed is still not computed again."""
    out = tmp_path / "o.parquet"
    with pytest.raises(KeyboardInterrupt):
        go(folder, [Stopping(toy(), 2, KeyboardInterrupt())], out, "x", settings={"cache": "off"})
    draw("a red cross", 5).save(folder / "a.png")
    reward, other = toy(), toy("other", encoder="other")
    done = go(folder, [other, reward], out, "x", settings={"cache": "off"})
    assert (sum(reward.batches), sum(other.batches), done.scored) == (10 - 4, 10, 16)
    assert len(scores(out)) == 22


def test_a_stopped_run_is_not_lost_to_a_smaller_request(folder: Path, tmp_path: Path, toy) -> None:
    out = tmp_path / "o.parquet"
    with pytest.raises(KeyboardInterrupt):
        go(folder, [Stopping(toy(), 2, KeyboardInterrupt())], out, "x")
    with pytest.raises(InputError, match="of a run that was stopped holds a score of the reward toy"):
        go(folder, [toy("other")], out, "x")
    assert go(folder, [toy()], out, "x").scored == 5


def test_shards_and_batches_change_no_row(folder: Path, tmp_path: Path, toy) -> None:
    go(folder, [toy()], tmp_path / "a.jsonl")
    go(folder, [toy()], tmp_path / "b.jsonl", settings={"shard": 100, "batch_size": 100, "workers": 1, "cache": "off"})
    for a, b in zip(rows(tmp_path / "a.jsonl"), rows(tmp_path / "b.jsonl"), strict=True):
        assert a.pop("score") == pytest.approx(b.pop("score"), abs=1e-6)
        assert a == b


def test_embeddings_are_kept_and_serve_other_prompts(folder: Path, tmp_path: Path, toy, cache: Path) -> None:
    go(folder, [toy()], tmp_path / "a.csv", "x")
    assert list(cache.glob("*/*.safetensors"))
    reward = toy()
    go(folder, [reward], tmp_path / "b.csv", "y")
    assert (reward.preprocessed, reward.batches) == (0, [])
    go(folder, [toy()], tmp_path / "c.csv", "y", settings={"cache": "off"})
    assert list(scores(tmp_path / "b.csv").values()) == pytest.approx(list(scores(tmp_path / "c.csv").values()))


def test_names_and_prompts_that_are_no_text(folder: Path, tmp_path: Path, toy) -> None:
    """A name that is not UTF-8 fails by itself; half a character in a prompt is replaced."""
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "01.png").read_bytes())
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "02.png", "prompt": "half \\ud83d a face"}\n')
    for suffix in ("parquet", "csv"):
        done = go(folder, [toy()], tmp_path / f"o.{suffix}")
        assert [one["error"] for one in done.failed] == ["the file's name is not UTF-8; rename it"]
        assert done.failed[0]["image"] == r"caf\udce9.png", "two such names stay two"
        assert ("02.png", "half ? a face", "toy") in scores(tmp_path / f"o.{suffix}")


def test_a_prompt_as_long_as_a_book(folder: Path, tmp_path: Path, toy) -> None:
    go(folder, [toy()], tmp_path / "o.csv", "word " * 40_000)
    assert go(folder, [toy()], tmp_path / "o.csv", "word " * 40_000).scored == 0


@pytest.mark.parametrize(
    ("images", "processes", "shard", "expected"),
    [(10_000, 1, 0, 256), (10_000, 8, 0, 256), (300, 4, 0, 32), (2000, 4, 0, 125), (5, 4, 0, 32), (10_000, 8, 7, 7)],
)
def test_few_images_are_cut_smaller_for_several_processes(images, processes, shard, expected) -> None:
    """About four shards for each, but no smaller than a batch of 32, and no larger than 256."""
    assert ScoreSettings(shard=shard).images_at_once(images, processes) == expected


def test_a_stopped_run_goes_on_with_another_number_of_processes(folder: Path, tmp_path: Path, toy) -> None:
    """Other shards are another plan; what the first had computed is carried over."""
    out = tmp_path / "o.parquet"
    with pytest.raises(KeyboardInterrupt):
        go(folder, [Stopping(toy(), 2, KeyboardInterrupt())], out, "x", settings={"cache": "off"})
    reward = toy()
    done = go(folder, [reward], out, "x", settings={"cache": "off", "shard": 0, "batch_size": 2}, processes=2)
    assert (done.scored, sum(reward.batches)) == (5, 5)
    assert len(scores(out)) == 10


def test_banks_of_rewards_stay_empty_in_a_run(folder: Path, tmp_path: Path, toy) -> None:
    """Every image comes once: what a reward (or one inside it) would keep for a next call is not kept; then it may."""

    class Bank:
        limit_mib = 512.0

    outer, inner = toy("outer"), toy("inner")
    inner.bank, outer.parts, seen = Bank(), [inner], []
    combine = outer.combine
    outer.combine = lambda *args: seen.append(inner.bank.limit_mib) or combine(*args)
    go(folder, [outer], tmp_path / "o.csv")
    assert set(seen) == {0}
    assert inner.bank.limit_mib == 512


# several processes

SLOW = '''
"""A reward that takes its time and writes down what it sees."""
import os, time
import numpy as np, torch
from pathlib import Path
from visfeedback.types.records import About, Origin

ABOUT = About(measures="brightness")

class Slow:
    name, range, differentiable, reads_prompt = "slow", (0.0, 1.0), False, False
    preprocessing, encoder, origin = "rgb", "slow", Origin(model="program")

    def preprocess(self, image):
        return torch.from_numpy(np.array(image.convert("RGB").resize((8, 8)))).permute(2, 0, 1).float() / 255

    def encode_images(self, pixels):
        time.sleep(0.05)
        with open(os.environ["SEEN"], "a") as file:
            for one in pixels:
                file.write(f"{os.getpid()} {one.mean().item():.4f}\\n")
        return pixels.mean((1, 2, 3))[:, None]

    def encode_texts(self, prompts):
        return torch.zeros(len(prompts), 1)

    def combine(self, images, texts, pairing="paired"):
        return images[:, 0] if pairing == "paired" else images.expand(len(images), len(texts))

def load(variant="", path="", device="cpu", dtype="fp32"):
    here = Path(os.environ["SEEN"]).with_name("here")
    here.mkdir(exist_ok=True)
    (here / str(os.getpid())).touch()
    while len(list(here.iterdir())) < int(os.environ.get("WAIT_FOR", "1")):
        time.sleep(0.01)
    return Slow()
'''


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """60 grey pictures, each of its own brightness."""
    root = tmp_path / "many"
    root.mkdir()
    for n in range(60):
        Image.new("RGB", (8, 8), (4 * n, 4 * n, 4 * n)).save(root / f"{n:02}.png")
    return root


@pytest.fixture
def start(tmp_path: Path, many: Path):
    """``start(rank="0")`` runs `visfeedback score` with the slow reward in a process of its own."""
    package = tmp_path / "ours"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "slow.py").write_text(SLOW)
    environment = os.environ | {
        "SEEN": str(tmp_path / "seen"), "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    }  # fmt: skip
    arguments = ["--images", str(many), "--reward", "ours.slow", "--out", str(tmp_path / "o.csv"), "--shard", "5",
                 "--batch-size", "5", "--cache", "off", "--device", "cpu", "--json"]  # fmt: skip
    running: list[subprocess.Popen] = []

    def begin(*command: str, **more: str) -> subprocess.Popen:
        program = [sys.executable, *(command or ("-m", "visfeedback", "score")), *arguments]
        process = subprocess.Popen(
            program, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def seen(tmp_path: Path) -> list[str]:
    """What the reward has looked at, image by image."""
    path = tmp_path / "seen"
    return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []


def by_process(tmp_path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in (tmp_path / "seen").read_text().splitlines():
        found[line.split()[0]] = found.get(line.split()[0], 0) + 1
    return found


@pytest.mark.slow
def test_kill_9_loses_at_most_the_batch_in_flight(start, tmp_path: Path) -> None:
    process = start()
    deadline = time.monotonic() + 120
    while len(seen(tmp_path)) < 15 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(seen(tmp_path))
    assert 15 <= before < 60
    assert not (tmp_path / "o.csv").exists()
    out, err = start().communicate(timeout=200)
    answer = json.loads(out)
    assert answer["rows"] == 60, err
    assert 60 <= len(seen(tmp_path)) <= 60 + 5, "only the batch that the signal hit may be seen again"
    assert answer["scored"] <= 60 - before + 5
    found = [row["score"] for row in rows(tmp_path / "o.csv")]
    assert found == pytest.approx([4 * n / 255 for n in range(60)], abs=1e-6)
    assert not (tmp_path / "o.csv.parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["two commands", "ranks"])
def test_two_processes_share_the_work(start, tmp_path: Path, how: str) -> None:
    """Each image is seen once; both processes end well and find the whole table."""
    script = (str(Path(__file__).parents[2] / "scripts" / "score.py"),)
    if how == "ranks":
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
        both = [start(*script, WAIT_FOR="2", **rank) for rank in ranks]
    else:
        both = [start(WAIT_FOR="2"), start(WAIT_FOR="2")]
    answers = [process.communicate(timeout=250) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert sorted(seen(tmp_path)) == sorted({f"{4 * n / 255:.4f}" for n in range(60)})
    assert len(by_process(tmp_path)) == 2, "both had something to do"
    assert len(rows(tmp_path / "o.csv")) == 60
    told = [json.loads(out) for out, _ in answers if out]
    assert len(told) == (1 if how == "ranks" else 2), "of ranks only the first talks"
    assert all(answer["rows"] == 60 for answer in told)
    assert [name for name in files(tmp_path) if name.startswith("o.csv")] == ["o.csv"]


@pytest.mark.slow
def test_the_work_of_a_killed_process_is_taken_over(start, tmp_path: Path) -> None:
    first = start()
    while len(seen(tmp_path)) < 5:
        time.sleep(0.01)
    second = start()
    while len(by_process(tmp_path)) < 2 and first.poll() is None:
        time.sleep(0.01)
    first.kill()
    first.wait()
    out, err = second.communicate(timeout=200)
    assert second.returncode == 0, err
    assert json.loads(out)["rows"] == 60


@pytest.mark.slow
def test_another_request_on_the_same_table_is_refused_meanwhile(start, tmp_path: Path, many: Path, toy) -> None:
    process = start()
    while len(seen(tmp_path)) < 5:
        time.sleep(0.01)
    with pytest.raises(InputError, match="another command is writing"):
        go(many, [toy(reads_prompt=False)], tmp_path / "o.csv", settings={"cache": "off"})
    out, _ = process.communicate(timeout=200)
    assert json.loads(out)["rows"] == 60
    shutil.rmtree(many)


class Asked:
    """A reward whose answers cost money; its server goes away after so many questions."""

    pairs_at_once = 4

    def __init__(self, inner, questions: int = 1000) -> None:
        self._inner, self._left, self.asked = inner, questions, 0
        self.failures: dict[tuple[int, int], str] = {}

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def combine(self, images, texts, pairing="paired"):
        found = self._inner.combine(images, texts, pairing)
        if self.asked + found.numel() > self._left:
            raise InputError("no server")
        self.asked += found.numel()
        return found


@pytest.mark.parametrize("pairing", ["one", "matrix"])
def test_what_was_answered_is_kept_when_the_server_goes_away(folder: Path, tmp_path: Path, toy, pairing: str) -> None:
    """All 9 contents in one batch, 4 questions a call: what the calls before the last one got is never asked again."""
    prompts = ["x"] if pairing == "one" else ["x", "y", "z", "u", "v"]
    many = {"batch_size": 32, "shard": 32}
    with pytest.raises(InputError, match="no server"):
        go(folder, [Asked(toy(), 6)], tmp_path / "o.csv", *prompts, pairing=pairing, settings=many)
    again = Asked(toy())
    go(folder, [again], tmp_path / "o.csv", *prompts, pairing=pairing, settings=many)
    assert again.asked == 9 * len(prompts) - 4
    assert len(rows(tmp_path / "o.csv")) == 10 * len(prompts)


def test_a_system_without_flock_is_told_so(folder: Path, tmp_path: Path, toy, monkeypatch) -> None:
    """Windows: one line before anything is made."""
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(InputError, match=r"no flock.*vf\.score"):
        go(folder, [toy()], tmp_path / "o.csv")


def test_a_run_that_is_late_leaves_the_next_ones_plan_alone(folder: Path, tmp_path: Path, toy) -> None:
    """Another process merged, and the same command began anew under the same name, before this one came to merge."""
    out, again = tmp_path / "o.csv", tmp_path / "o.csv.parts"

    class Late(Run):
        def _merge(self, found, alive: int) -> list[str]:
            assert go(folder, [toy()], out).scored == 0, "all was done"
            found.folder.mkdir(parents=True)
            (found.folder / "alive").touch()
            return super()._merge(found, alive)

    settings = ScoreSettings(shard=4, batch_size=3, workers=2)
    done = Late(open_source(str(folder), settings), [toy()], out, settings=settings).go()
    assert (done.scored, len(rows(out))) == (9 + 1, 10)
    assert [path.name for path in again.glob("*/*")] == ["alive"]
