"""Grades in words become weights, fresh images may come from any sampler, and folders may be moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from toy_training import Brightness, toy_settings

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import draw_with
from visfeedback.training.fit import fit
from visfeedback.training.images import load_images, opinions
from visfeedback.training.moved import came_along, find
from visfeedback.training.run import Run, read_metrics
from visfeedback.training.settings import Data
from visfeedback.training.setup import prepare
from visfeedback.types.protocols import silent
from visfeedback.types.records import Feedback


@pytest.fixture
def reward(monkeypatch) -> Brightness:
    one = Brightness()
    monkeypatch.setattr(rewards, "load", lambda name, device="cpu", dtype="fp32": one)
    return one


def write_rows(folder: Path, rows: list[dict]) -> Path:
    """images.jsonl with a noise image for each row."""
    random = numpy.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(rows):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=numpy.uint8)).save(folder / f"{i}.png")
        row |= {"image": f"{i}.png", "prompt": f"p{i // 2}"}
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "images.jsonl"


# words


def test_grades_in_words_are_the_weights_of_a_training(tiny_sd, tmp_path):
    """LiFT: Good .9, Normal .2, Bad .05, averaged over dimensions: (.9 + .2 + .05) / 3 = .38333, (.9 + .05) / 2 = .475;
    rwr with `weighting = "reward"` takes them as they are. A score of its own comes before words."""
    rows = [
        {"grades": {"semantics": "Good", "motion": "Normal", "fidelity": "Bad"}}, {"grades": ["good", "bad"]},
        {"grades": "Good; Bad"}, {"grades": ["Bad"], "score": 0.7},
    ]  # fmt: skip
    file = write_rows(tmp_path, rows)
    scores = [picture.score for picture in load_images(Data(images=str(file)), False)]
    assert scores == pytest.approx([1.15 / 3, 0.475, 0.475, 0.7])
    wanted = toy_settings("rwr", tiny_sd, method={"weighting": "reward"}, data={"images": str(file)},
                          reward={"name": ""})  # fmt: skip
    batch = prepare(wanted, Run(tmp_path / "run"), False, silent).stepper.batches.batch(0)
    assert {round(value, 3) for value in batch.weight.tolist()} <= {0.383, 0.475, 0.7}


def test_grades_of_a_store_are_weighed_and_kept_apart_from_other_answers():
    """Good + Bad is .475, Normal .2; the mean of both judges is .3375."""
    said = [
        Feedback(kind="rating", judge=f"vlm:{k}", sample_ids=("x",), values=(0.0,), extra={"grades": words})
        for k, words in enumerate((["Good", "Bad"], ["Normal"]))
    ]
    assert opinions(said) == {"x": pytest.approx(0.3375)}
    with pytest.raises(InputError, match="grades in words and other answers, which have no common scale"):
        opinions([*said, Feedback(kind="like", judge="human:a", sample_ids=("x",), values=(1.0,))])


def test_a_grade_that_nobody_knows_is_one_line(tmp_path):
    file = write_rows(tmp_path, [{"grades": ["Goood"]}])
    with pytest.raises(InputError, match=r"grades of 0\.png: no grade 'Goood'; did you mean") as found:
        load_images(Data(images=str(file)), False)
    assert "\n" not in str(found.value)


# samplers


def test_fresh_images_of_another_sampler_are_a_stock_pipelines(tiny_sd, tmp_path, reward):
    """The round holds what the pipeline draws with that scheduler, prompts, seeds, steps and guidance."""
    from diffusers import EulerDiscreteScheduler

    wanted = toy_settings("rwr", tiny_sd, rollout={"sampler": "euler", "eta": 0.0, "micro_batch": 4})
    setup = prepare(wanted, Run(tmp_path), False, silent)
    rounds = setup.stepper.batches._sets._rounds
    plan, drawn = rounds.plan(0), rounds.of(0)
    pipe = setup.backbone.pipe
    before, pipe.scheduler = pipe.scheduler, EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    stock = pipe(
        prompt=[p.text for p, *_ in plan], num_inference_steps=3, guidance_scale=2.0, output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for _, _, seed, *_ in plan],
    ).images  # fmt: skip
    torch.testing.assert_close(drawn.paths.images, stock, rtol=1e-4, atol=1e-5)
    pipe.scheduler = before
    assert "DDIM" in type(before).__name__, "and the pipeline has its own scheduler again"


def test_images_of_another_sampler_may_share_their_first_noise(tiny_sd, tmp_path, reward):
    """euler ancestral adds noise on the way, so what begins alike differs; a round's images are those that it draws
    from the prompt's own start."""
    rollout = {"sampler": "eulerancestral", "eta": 0.0, "shared_noise": True}
    setup = prepare(toy_settings("rwr", tiny_sd, rollout=rollout, reward={"normalise": "none"}), Run(tmp_path), False,
                    silent)  # fmt: skip
    rounds = setup.stepper.batches._sets._rounds
    plan = rounds.plan(0)
    images = rounds._roll(plan, rounds._texts(plan)).images
    prompts, seeds, starts = [p.text for p, *_ in plan], [row[2] for row in plan], [row[3] for row in plan]
    assert starts[0] == starts[1] != starts[2]
    again = draw_with(setup.backbone, prompts, [""] * len(plan), seeds, rounds.studio.walk, starts).images
    torch.testing.assert_close(images, again)
    apart = draw_with(setup.backbone, prompts, [""] * len(plan), seeds, rounds.studio.walk).images
    assert not torch.allclose(images[0], images[1]) and not torch.allclose(images, apart)


@pytest.mark.parametrize(
    ("method", "rollout", "words"),
    [
        (
            "ddpo",
            {"sampler": "euler"},
            r"ddpo needs the log-probabilities of DDIM's steps; leave out --rollout\.sampler",
        ),
        ("draft", {"sampler": "euler", "eta": 0.0}, "draft needs the gradient of DDIM's steps"),
        ("rwr", {"sampler": "euler"}, r"rollout\.eta = 1 is for the model's own DDIM steps; give --rollout\.eta 0"),
        ("rwr", {"sampler": "eulre", "eta": 0.0}, "no sampler 'eulre' for this model; did you mean"),
    ],
)
def test_samplers_that_cannot_serve_are_one_line(tiny_sd, tmp_path, reward, method, rollout, words):
    with pytest.raises(InputError, match=words) as found:
        fit(toy_settings(method, tiny_sd, rollout=rollout), tmp_path / "run")
    assert "\n" not in str(found.value) and not (tmp_path / "run/config.toml").exists()


# moved folders


def test_a_run_that_was_moved_with_its_data_goes_on_to_the_same_weights(tiny_sd, tmp_path, reward):
    """Data and run lie in one folder that is renamed between two halves; nothing is cached, so pictures are read again
    from where they are now."""

    def wanted(home: Path, steps: int):
        file = str(home / "images/images.jsonl")
        engine = {"cache": {"moments": False, "text": False}}
        return toy_settings("rwr", tiny_sd, data={"images": file, "real": file}, method={"weighting": "reward"},
                            reward={"name": ""}, optim={"steps": steps}, engine=engine)  # fmt: skip

    old, new = tmp_path / "old", tmp_path / "new/deeper"
    write_rows(old / "images", [{"score": score} for score in (0.1, 0.9, 0.5, 0.7)])
    fit(wanted(old, 4), tmp_path / "whole")
    fit(wanted(old, 2), old / "run")
    new.parent.mkdir()
    shutil.move(old, new)
    fit(wanted(new, 4), new / "run", resume=True)
    weights = "adapter/pytorch_lora_weights.safetensors"
    assert (new / "run" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert [row["step"] for row in read_metrics(new / "run/metrics.jsonl")] == [1, 2, 3, 4]


def test_other_data_is_still_refused(tiny_sd, tmp_path, reward):
    file = write_rows(tmp_path / "images", [{"score": score} for score in (0.1, 0.9)])
    other = write_rows(tmp_path / "others", [{"score": score} for score in (0.1, 0.9)])

    def wanted(name: Path):
        return toy_settings("rwr", tiny_sd, data={"images": str(name)}, reward={"name": ""}, optim={"steps": 1})

    fit(wanted(file), tmp_path / "run")
    with pytest.raises(InputError, match=r"started with data\.images"):
        fit(wanted(other), tmp_path / "run", resume=True)


def test_what_came_along_has_its_old_name_beside_the_run(tmp_path):
    root = tmp_path / "job/run"
    assert came_along("sqlite:////old/store.db", f"sqlite:///{tmp_path}/job/store.db", root)
    assert came_along("/old/round-1/run/adapter", str(tmp_path / "job/round-1/run/adapter"), root)
    assert not came_along("/old/store.db", str(tmp_path / "job/other.db"), root)
    assert not came_along("/old/a/images.jsonl", str(tmp_path / "job/b/images.jsonl"), root)
    assert not came_along("", str(tmp_path / "job/store.db"), root) and not came_along("x", "", root)


def test_the_longest_known_end_of_a_path_is_found(tmp_path):
    for name in ("a/images/1.png", "1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "run").mkdir()
    assert find("/gone/a/images/1.png", tmp_path / "run") == str(tmp_path / "a/images/1.png")
    assert find("/gone/a/images/2.png", tmp_path / "run") == "/gone/a/images/2.png"
