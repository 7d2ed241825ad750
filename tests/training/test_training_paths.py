"""Batches of denoising paths: which steps are learned, what counts as used, and paths of a folder with votes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import DDIMScheduler
from toy_training import Brightness, toy_settings

from visfeedback import rewards, store
from visfeedback.backbones.load import load
from visfeedback.diffusion.ddpm import DDPM
from visfeedback.loops._path_drawing import Artist, draw_groups
from visfeedback.plugins import InputError
from visfeedback.sampling.rollout import Walk
from visfeedback.training.fit import fit
from visfeedback.training.openers import check
from visfeedback.training.paths import check_rounds, learned_steps
from visfeedback.training.run import Run
from visfeedback.training.setup import prepare
from visfeedback.training.stored_paths import load_paths, open_paths
from visfeedback.training.tables import Worker
from visfeedback.types.protocols import silent
from visfeedback.types.records import PAIR_VALUES, Feedback, Prompt

WALK = Walk(2, 2.0)


@pytest.fixture
def online(tiny_sd, monkeypatch):
    """``online("ddpo", optim={"steps": 2})``: settings of a toy run; every reward is the brightness."""
    monkeypatch.setattr(rewards, "load", lambda name, device="cpu", dtype="fp32": Brightness())
    return lambda name, **changes: toy_settings(name, tiny_sd, **changes)


def batches_of(settings, folder):
    return prepare(settings, Run(folder), False, silent).stepper.batches


# steps and counts


def test_a_step_at_a_bound_is_random_and_learned(online):
    """Ten trailing steps begin at 1, .9, .8 ...; in float32 .8 is .800000012 and .3 is .300000012. In .3 < t <= .8 are
    .8 .7 .6 .5 .4, steps 2 to 6, whether they are asked to be random, or to be learned, or both."""
    process = DDPM.of(DDIMScheduler(timestep_spacing="trailing", set_alpha_to_one=False))
    part, whole = (0.3, 0.8), (0.0, 1.0)
    for learned, random in ((part, whole), (whole, part), (part, part)):
        settings = online("ddpo", rollout={"times": learned})
        assert learned_steps(settings, process, Walk(10, random_times=random)) == [2, 3, 4, 5, 6]


def test_a_failed_step_that_comes_again_counts_once(online, tmp_path):
    """One step is 2 images in 3 calls. Until it is done none is seen; drawn on again, it is still 2; then 4."""
    batches = batches_of(online("ddpo"), tmp_path)
    for _ in range(2):
        for micro in range(batches.calls):
            batches.batch(0, micro)
        assert batches.counts(0)["images_seen"] == batches.save(0)["used"] == 0
    assert batches.counts(1)["images_seen"] == 2
    batches.batch(1)
    assert (batches.counts(1)["images_seen"], batches.counts(2)["images_seen"]) == (2, 4)
    batches.restore(batches.save(1))
    assert batches.counts(1)["images_seen"] == 2


def test_a_round_of_whole_steps_is_needed_only_where_passes_are_counted(online):
    """4 images are no whole number of steps of 2 x 3; with `every` steps a round they need not be, only of batches."""
    changes = {"optim": {"batch_size": 2, "accumulate": 3}}
    with pytest.raises(InputError, match=r"no whole number of steps of 6"):
        check_rounds(online("ddpo", **changes), 4)
    check_rounds(online("ddpo", **changes, rollout={"every": 1}), 4)
    with pytest.raises(InputError, match=r"4 images per process is no whole number of batches of 3; change"):
        check_rounds(online("ddpo", optim={"batch_size": 3}, rollout={"every": 1}), 4)


def test_more_steps_than_a_pass_go_on_with_the_next_one(online, tmp_path):
    """A step of 2 x 3 images on a round of 4, `every` 2: 12 images are three passes, each image thrice."""
    settings = online("ddpo", optim={"batch_size": 2, "accumulate": 3}, rollout={"every": 2})
    batches = batches_of(settings, tmp_path)
    assert batches.per_round == 2 and batches.calls == 9
    starts = [x.sum().item() for step in (0, 1) for part in (0, 3, 6) for x in batches.batch(step, part).latents[:, 0]]
    assert sorted(starts.count(start) for start in set(starts)) == [3, 3, 3, 3]


# images of a prompt that would be one


@pytest.mark.parametrize(
    ("rollout", "words"),
    [
        ({"eta": 0.0}, "rollout.eta = 0 leaves no step random"),
        ({"random_times": [0.9, 1.0]}, "rollout.random_times = 0.9 1 leaves no step random"),
        ({"eta": 0.0, "sampler": "euler"}, "rollout.sampler = 'euler' leaves no step random"),
    ],
)
def test_shared_noise_needs_a_random_step(online, tmp_path, rollout, words):
    """Two images that begin alike and meet no noise are one image: the first step begins at .67."""
    expected = f"{words}.* all 2 images of a prompt are the same one; give --rollout.no-shared-noise"
    with pytest.raises(InputError, match=expected) as caught:
        prepare(online("rwr", rollout={"shared_noise": True, **rollout}), Run(tmp_path), False, silent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rollout",
    [
        {"eta": 0.0, "shared_noise": False},
        {"eta": 0.0, "sampler": "euler_a"},
        {"eta": 0.0, "per_prompt": 1, "prompts_per_round": 4},
    ],
)
def test_what_differs_may_share_its_noise(online, tmp_path, rollout):
    prepare(online("rwr", rollout={"shared_noise": True, **rollout}), Run(tmp_path), False, silent)


# paths of a folder


@pytest.fixture(scope="module")
def stored(tiny_sd, tmp_path_factory) -> dict[str, str]:
    """3 prompts x 2 images with their paths; of each prompt somebody liked the second one. What `data` says of them."""
    folder = tmp_path_factory.mktemp("paths")
    backbone = load(str(tiny_sd), device="cpu")
    backbone.add_lora(rank=2)
    prompts = [Prompt.of(text) for text in ("a", "bb", "ccc")]
    samples = draw_groups(Artist(backbone, WALK, "", 2, True), prompts, 2, 0, folder, lambda count: None)
    address = f"sqlite:///{folder / 'votes.db'}"
    with store.open(address) as opened:
        opened.add_feedback(
            Feedback(judge="human:ada", prompt_id=a.prompt_id, sample_ids=(a.id, b.id), choice="b",
                     values=PAIR_VALUES["b"]) for a, b in zip(samples[::2], samples[1::2], strict=True)
        )  # fmt: skip
    return {"paths": str(folder), "store": address}


def test_a_run_on_stored_paths_makes_no_images(online, tmp_path, stored):
    """3 steps of one group are a pass over 6 images, 6 steps two: 12 are seen, none is made."""
    summary = fit(online("d3po", data=stored, reward={"name": ""}, optim={"steps": 6}), tmp_path)
    assert summary["images_seen"] == 12 and summary["prompts"] == 3 and "images_made" not in summary
    assert "6 images of 3 prompts that people compared" in (tmp_path / "card.md").read_text()


def test_votes_are_for_methods_that_compare(online, tmp_path, stored):
    """A vote says which of two images is better, and DDPO's advantages come from scores: it would push all alike."""
    with pytest.raises(InputError, match=r"ddpo learns from scores.*--method\.name d3po.*--rollout\.source fresh"):
        fit(online("ddpo", data=stored), tmp_path)
    assert not any(tmp_path.iterdir())


def test_processes_take_as_many_prompts_each(online, stored, tmp_path):
    """3 prompts: two processes take one each and a third is left out, which the run says; four have nothing to do."""
    settings = online("d3po", data=stored, reward={"name": ""})
    backbone = load(settings.model.id, device="cpu")
    backbone.add_lora(rank=2)
    one = Worker(settings, backbone, Path(tmp_path), silent, lambda: None, lambda: None, 0, 2)  # type: ignore[arg-type]
    records = load_paths(settings.data)
    feeds = [open_paths(replace(one, rank=rank), records, lambda value: value) for rank in (0, 1)]
    assert [feed.batches.supply.size for feed in feeds] == [2, 2]
    names = [name for feed in feeds for name in feed.batches.supply.of(0).names]
    assert sorted(names) == sorted(record.id for record in records[:4])
    for feed in feeds:
        assert feed.learned.startswith("4 images of 2 prompts that people compared (of 3")
        assert feed.prompts == ["a", "bb"]
    with pytest.raises(InputError, match=r"3 prompts were compared, which is too few for 4 processes; .*processes 3"):
        open_paths(replace(one, ranks=4), records, lambda value: value)


def test_reward_gradients_take_all_steps_alike(online, tmp_path):
    """refl and draft know `rollout.eta` alone: a part of the schedule is refused, not ignored."""
    for name in ("refl", "draft"):
        settings = online(name, rollout={"random_times": [0.5, 1.0]})
        with pytest.raises(InputError, match=f"rollout.random_times: {name} takes all of its steps by rollout.eta"):
            check(settings)
