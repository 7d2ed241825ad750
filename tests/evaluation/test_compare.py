"""Base against tuned on a tiny model with a random adapter: pairing, summary, resuming, drift, diversity."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from visfeedback.backbones.load import load
from visfeedback.evaluation.compare import CompareSettings, Panel, compare, diversity, measure_drift
from visfeedback.evaluation.outcomes import read_outcomes
from visfeedback.plugins import InputError
from visfeedback.sampling.generate import GenerateSettings
from visfeedback.sampling.samples import read_samples
from visfeedback.types.memory import peak_mib
from visfeedback.types.protocols import Verdict
from visfeedback.types.records import PAIR_VALUES, Feedback, Origin, Prompt, Sample, image_id

PROMPTS = [Prompt.of(f"a {c} circle", category=k) for c, k in [("red", "one"), ("blue", "one"), ("green", "two")]]
SETTINGS = CompareSettings(per_prompt=2, seed=5, generate=GenerateSettings(steps=2, batch_size=4))


class Bright:
    """A verifier: right when the mean of the pixels is above one half; its soft score is the mean."""

    def verify(self, prompt: str, image: Image.Image) -> Verdict:
        value = sum(image.convert("L").tobytes()) / (255 * image.width * image.height)
        return Verdict(value > 0.5, value, {"bright": value > 0.5})


class Left:
    """A judge that always takes the first image: after swapping sides it must prefer neither."""

    name = "test:left"

    def __init__(self) -> None:
        self.asked = 0

    def compare(self, prompt, samples, images) -> Feedback:
        self.asked += 1
        ids = tuple(s.id for s in samples)
        return Feedback(judge=self.name, prompt_id=prompt.id, sample_ids=ids, choice="a", values=PAIR_VALUES["a"])


class Constant:
    """A reward that reads the red channel."""

    name, range, differentiable, preprocessing = "red", (0.0, 1.0), False, "none"

    def preprocess(self, image):
        return torch.tensor(image.convert("RGB").getpixel((0, 0)), dtype=torch.float32).view(3, 1, 1) / 255

    def encode_images(self, pixels):
        return pixels[:, 0, 0, 0]

    def encode_texts(self, prompts):
        return torch.zeros(len(prompts))

    def combine(self, images, texts, pairing="paired"):
        return images + texts


@pytest.fixture(scope="module")
def backbone(tiny_sd):
    """A LoRA whose up projections are random, so that base and tuned differ."""
    found = load(str(tiny_sd), device="cpu")
    found.add_lora(rank=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return found


@pytest.fixture(scope="module")
def compared(backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    panel = Panel(Left(), Bright(), [Constant()], {"width": lambda image: float(image.width)})
    return compare(backbone, PROMPTS, SETTINGS, panel, out), out


def test_summary_has_the_keys_of_the_contract(compared):
    summary, _ = compared
    assert {"seed", "seconds", "peak_mib", "judge", "n_prompts", "images_per_prompt", "base", "tuned", "delta",
            "delta_ci95", "win_rate", "win_rate_ci95", "drift", "diversity", "adapter"} <= set(summary)  # fmt: skip
    assert {"accuracy", "per_category", "rewards"} <= set(summary["base"])
    assert set(summary["base"]["per_category"]["one"]) == {"accuracy", "n", "ci95"}
    assert (summary["n_prompts"], summary["images_per_prompt"], summary["judge"]) == (3, 2, "test:left")
    assert summary["peak_mib"] == pytest.approx(peak_mib(), rel=0.5)
    json.dumps(summary)


def test_pairs_share_prompt_and_seed_and_differ(compared):
    _, out = compared
    outcomes = read_outcomes(out)
    assert len(outcomes) == 6
    assert len({(o.prompt_id, o.seed) for o in outcomes}) == 6
    assert any(o.base.sample_id != o.tuned.sample_id for o in outcomes)
    rows = {side: [s.seed for s in read_samples(out / side)] for side in ("base", "tuned")}
    assert rows["base"] == rows["tuned"] == [o.seed for o in outcomes]


def test_verdicts_rewards_and_measures_are_of_the_images(compared):
    _, out = compared
    for outcome in read_outcomes(out):
        for seen in (outcome.base, outcome.tuned):
            image = Image.open(out / seen.path)
            assert seen.score == pytest.approx(Bright().verify("", image).score)
            assert seen.rewards["red"] == pytest.approx(image.convert("RGB").getpixel((0, 0))[0] / 255, abs=1e-6)
            assert seen.measures == {"width": 16.0}


def test_base_is_the_model_without_its_adapter(compared, tiny_sd, tmp_path):
    from visfeedback.sampling.generate import generate

    _, out = compared
    alone = generate(load(str(tiny_sd), device="cpu"), PROMPTS, 2, 5, tmp_path, SETTINGS.generate)
    assert [s.id for s in alone] == [o.base.sample_id for o in read_outcomes(out)]


def test_a_judge_that_always_takes_the_left_image_does_not_decide(backbone, tmp_path):
    """64 pairs shown in random order: the win rate of an empty opinion is .5 within 3 standard errors (.19)."""
    prompts = [Prompt.of(f"prompt {i}") for i in range(64)]
    settings = CompareSettings(per_prompt=1, generate=GenerateSettings(steps=1, batch_size=32))
    summary = compare(backbone, prompts, settings, Panel(judge=Left()), tmp_path)
    assert summary["win_rate"] == pytest.approx(0.5, abs=0.19)
    assert summary["base"]["accuracy"] is None
    assert summary["delta_of"] == "win rate above one half"
    assert summary["delta"] == pytest.approx(summary["win_rate"] - 0.5)
    assert summary["diversity"] == {"base": None, "tuned": None}


def test_a_repeat_draws_nothing_and_says_the_same(compared, backbone, monkeypatch):
    summary, out = compared
    monkeypatch.setattr("visfeedback.sampling.generate.render", lambda *a, **k: pytest.fail("drew again"))
    panel = Panel(Left(), Bright(), [Constant()])
    again = compare(backbone, PROMPTS, SETTINGS, panel, out)
    same = set(summary) - {"seconds", "peak_mib", "base", "tuned"}
    assert {key: again[key] for key in same} == {key: summary[key] for key in same}


def test_without_an_adapter_nothing_changes(tiny_sd, tmp_path):
    """A fresh LoRA is the base model: drift exactly 0, every pair a tie that no judge was asked about, delta 0."""
    fresh = load(str(tiny_sd), device="cpu")
    fresh.add_lora(rank=2)
    judge, said = Left(), list[str]()

    @contextmanager
    def listening(description: str, total: int):
        said.append(description)
        yield lambda count: None

    summary = compare(fresh, PROMPTS, SETTINGS, Panel(judge, Bright()), tmp_path, listening)
    assert said[-1] == "measuring the drift", "whatever may take long has a bar"
    assert summary["drift"] == 0
    assert summary["win_rate"] == 0.5
    assert judge.asked == 0
    assert summary["delta"] == 0
    assert summary["delta_ci95"] == [0, 0]


def test_drift_is_above_zero_when_something_was_learnt(compared):
    assert compared[0]["drift"] > 0


def test_drift_is_measured_without_dropout(tiny_sd, compared):
    """An adapter in training, with dropout .5: measured twice it is the same, and as if it had none."""
    _, out = compared
    samples, found = read_samples(out / "base"), []
    for dropout in (0.5, 0.5, 0.0):
        training = load(str(tiny_sd), device="cpu")
        training.add_lora(rank=2, dropout=dropout)
        with torch.no_grad():
            for parameter in training.parameters():
                parameter.fill_(0.05)
        found.append(measure_drift(training, samples, out / "base", seed=0))
    assert found[0] == found[1] == found[2] > 0


class Reader(Left):
    """A judge that reads numbers only."""

    def check_prompt(self, prompt, picture) -> None:
        if not prompt.text.isdigit():
            raise InputError(f"{prompt.text!r} is no number")


class Picky(Constant):
    def encode_texts(self, prompts):
        if any("green" in prompt for prompt in prompts):
            raise InputError("no green")
        return super().encode_texts(prompts)


class Speechless(Constant):
    """Has no score for one of the prompts."""

    def encode_texts(self, prompts):
        return torch.tensor([math.nan if "green" in prompt else 0.0 for prompt in prompts])


def test_a_missing_score_is_an_error_and_no_hole_in_a_mean(backbone, tmp_path):
    with pytest.raises(InputError, match=r"red has no score for base/images/.*a green circle") as error:
        compare(backbone, PROMPTS, SETTINGS, Panel(rewards=[Speechless()]), tmp_path)
    assert "\n" not in str(error.value)


def _from(model: str) -> Constant:
    reward = Constant()
    reward.origin = Origin(model=model)
    return reward


def test_two_rewards_of_one_name_are_told_apart_by_their_models(backbone, tmp_path):
    """Two fits are both called `fit`: by name alone the second would replace the first."""
    rewards = [_from("one"), _from("two")]
    summary = compare(backbone, PROMPTS[:1], SETTINGS, Panel(rewards=rewards), tmp_path)
    assert set(summary["tuned"]["rewards"]) == {"red (one)", "red (two)"}
    with pytest.raises(InputError, match="names one twice"):
        compare(backbone, PROMPTS, SETTINGS, Panel(rewards=[rewards[0], rewards[0]]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


class Blind(Bright):
    def verify(self, prompt, image):
        raise InputError(f"cannot read {prompt!r}")


@pytest.mark.parametrize("panel", [Panel(judge=Reader()), Panel(verifier=Blind()), Panel(rewards=[Picky()])])
def test_a_prompt_that_somebody_cannot_read_is_an_error_before_hours_of_drawing(backbone, tmp_path, panel):
    with pytest.raises(InputError, match=r"is no number|cannot read|no green"):
        compare(backbone, PROMPTS, SETTINGS, panel, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_diversity(tmp_path):
    """A prompt with a black and a white image: 1. A prompt with twice the same image: 0. Mean .5."""
    for name, color in (("b", "black"), ("w", "white")):
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{name}.png")
    rows = [("p", "b"), ("p", "w"), ("q", "b"), ("q", "b")]
    samples = [
        Sample(id=image_id(4, 4, b""), prompt_id=p, prompt=p, path=f"{f}.png", width=4, height=4) for p, f in rows
    ]
    assert diversity(samples, tmp_path) == pytest.approx(0.5)


def test_nobody_to_ask_is_an_error(backbone, tmp_path):
    with pytest.raises(InputError, match="nobody"):
        compare(backbone, PROMPTS, SETTINGS, Panel(), tmp_path)
    with pytest.raises(InputError, match="no prompts"):
        compare(backbone, [], SETTINGS, Panel(verifier=Bright()), tmp_path)
