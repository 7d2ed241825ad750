"""The presets of all programs: they parse, say what they are for, and those for SD 1.5 hold the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from visfeedback import plugins
from visfeedback.cli.presets import describe
from visfeedback.config import build, read_toml
from visfeedback.loops.human_d3po import Program
from visfeedback.types.protocols import silent

FOLDER = Path(__file__).parents[2] / "configs" / "loops"
PRESETS = sorted(FOLDER.glob("*.toml"))


def settings(path: Path) -> Any:
    table = read_toml(path)
    return build(plugins.load("loops", table["loop"]["name"]).Settings, table, str(path))


@pytest.mark.parametrize("path", PRESETS, ids=[path.stem for path in PRESETS])
def test_every_preset_parses_and_says_what_it_is(path):
    """`visfeedback presets` has a line for it: the program, the model and what that needs, and what it is for."""
    chosen, said = settings(path), describe(path)
    assert said["method"] == chosen.loop.name and path.stem.startswith(("fabric", chosen.loop.name))
    assert said["model"] == chosen.model.id and len(said["about"]) > 40
    ours = path.stem.endswith("_shapes")
    assert ("GiB of memory" in said["needs"]) if ours else said["model"].startswith("stable-diffusion-v1-5/")


@pytest.mark.parametrize("program", ["human_d3po", "lee_rwr", "dreamsync"])
def test_programs_have_presets_for_both_worlds(program):
    assert {f"{program}_shapes", f"{program}_sd15"} <= {path.stem for path in PRESETS}


def test_d3po_with_people_as_published(tmp_path):
    """facts/trainers.md 1.2, and the release: sample.py gives all seven images the first one's latents."""
    chosen = settings(FOLDER / "human_d3po_sd15.toml")
    rollout, optim = chosen.rollout, chosen.optim
    assert (rollout.per_prompt, rollout.steps, rollout.guidance, rollout.eta) == (7, 20, 5.0, 1.0)
    assert rollout.shared_noise and (chosen.method.beta, chosen.method.clip) == (0.1, 0.1)
    assert (optim.lr, optim.weight_decay, optim.max_grad_norm, chosen.lora.rank) == (3e-5, 1e-4, 1.0, 4)
    assert chosen.engine.mixed_precision == "fp16" and chosen.ask.pairs == 0 and chosen.ask.judge == ""
    assert optim.steps * optim.batch_size == rollout.prompts_per_round * rollout.per_prompt, "each image once"
    Program(chosen, tmp_path, [], silent).check()


def test_lee_et_al_as_recalled():
    """facts/methods.md 5: clipscore's default is CLIP ViT-L/14."""
    from visfeedback.rewards.clipscore import ABOUT

    chosen = settings(FOLDER / "lee_rwr_sd15.toml")
    assert chosen.reward.base == "clipscore" and ABOUT.hub == "openai/clip-vit-large-patch14"
    assert (chosen.reward.auxiliary, chosen.method.weighting, chosen.method.beta) == (0.5, "reward", 2.0)
    assert (chosen.optim.lr, chosen.optim.steps, chosen.label.judge) == (1e-5, 10_000, "store")


def test_dreamsync_as_recalled():
    """facts/methods.md 10; thresholds are in the rewards' own units, and each round learns from its newest images."""
    chosen = settings(FOLDER / "dreamsync_sd15.toml")
    assert (chosen.loop.per_prompt, chosen.loop.rounds, chosen.lora.rank, chosen.loop.accumulate) == (8, 3, 128, False)
    assert chosen.filter.faithful.startswith("vqascore@") and chosen.filter.faithful_from == 0.9
    assert chosen.filter.beautiful == "aesthetic" and 4 < chosen.filter.beautiful_from < 7
