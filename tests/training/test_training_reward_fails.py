"""A reward that fails, is silent, is wrong or says nothing: what is asked again, what is saved, what people read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_training import Brightness, toy_settings

from visfeedback import rewards
from visfeedback.methods.ddpo import DDPO
from visfeedback.plugins import InputError
from visfeedback.rewards.mix import Mix, Part
from visfeedback.rewards.ocr import Ocr
from visfeedback.training import checkpoint
from visfeedback.training.fit import fit
from visfeedback.training.run import Run, read_metrics
from visfeedback.training.scorer import Silent, Unscored, is_server
from visfeedback.training.settings import Engine
from visfeedback.training.setup import prepare
from visfeedback.types.protocols import silent
from visfeedback.types.records import Origin

ROOT = Path(__file__).parents[2]
SERVER = Origin(model="http://host")


class Gone(ConnectionError):
    """What a client may raise."""


def gone(scores):
    raise Gone("refused")


def weights(folder: Path, step: int) -> bytes:
    return (folder / f"checkpoints/step-{step}/adapter.safetensors").read_bytes()


# asking again


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_silent_server_is_asked_once_more_for_each_retry_and_no_more(online, tmp_path, reward, overlap):
    """4 images one by one, 2 retries: the first one is asked about 1 + 2 times, the others not at all."""
    reward.origin, reward.spoil = SERVER, gone
    wanted = online("ddpo", reward={"retries": 2}, rollout={"micro_batch": 1, "overlap": overlap})
    with pytest.raises(Silent, match=r"does not answer \(3 attempts\): refused; go on from the start with --resume"):
        fit(wanted, tmp_path)
    assert reward.asked == 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda scores: scores * float("nan"), "gave nan to an image of"),
        (lambda scores: scores[:, None], r"returned scores of shape \(4, 1\)"),
    ],
)
def test_a_wrong_answer_of_a_server_is_not_asked_for_again(online, tmp_path, reward, spoil, words):
    reward.origin, reward.spoil = SERVER, spoil
    with pytest.raises(Unscored, match=f"{words}.*; other settings need another --out") as caught:
        fit(online("ddpo", reward={"retries": 2}), tmp_path)
    assert reward.asked == 1 and "does not answer" not in str(caught.value)


def test_a_server_that_says_why_it_has_no_score_is_asked_again(online, tmp_path, reward):
    """As endpoints do that are overloaded: NaN with a reason at first, then the score; 2 rounds and 1 retry."""
    reward.failures = {}

    def busy(scores):
        reward.failures = {(1, 1): "the host answers 503"} if reward.asked == 1 else {}
        return scores.index_fill(0, torch.tensor([row for row, _ in reward.failures], dtype=torch.long), float("nan"))

    reward.origin, reward.spoil = SERVER, busy
    assert fit(online("ddpo", reward={"retries": 1}), tmp_path)["steps"] == 4 and reward.asked == 3


def test_a_program_says_why_it_has_no_score(online, tmp_path, reward):
    def blind(scores):
        reward.failures = {(0, 0): "it shows nothing"}
        return scores * float("nan")

    reward.spoil = blind
    with pytest.raises(Unscored, match=r"gave nan to an image of '.*' \(it shows nothing\); expected a number"):
        fit(online("ddpo"), tmp_path)


LAB = """
from toy_training import Brightness
from visfeedback.types.records import Origin

def load(variant="", path="", device="cpu", dtype="fp32"):
    one = Brightness()
    one.origin, one.spoil = Origin(ORIGIN), lambda scores: 1 / 0
    return one
"""


@pytest.mark.parametrize(
    ("origin", "attempts"),
    [('model="http://far:8000"', 3), ('model="far", dtype=""', 3), ('model="near"', 1), ('model="program"', 1),
     ('model="http://near/w.pt", checkpoint_sha256="0"', 1)],
)  # fmt: skip
def test_a_reward_of_ones_own_says_whether_it_is_a_server(tiny_sd, tmp_path, monkeypatch, origin, attempts):
    """By its origin, as `types.protocols.Reward` has it; only a server's errors are asked about again."""
    folder = tmp_path / "mylab"
    folder.mkdir()
    (folder / "warmth.py").write_text(LAB.replace("ORIGIN", origin))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mylab", "mylab.warmth"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    wanted = toy_settings("ddpo", tiny_sd, reward={"name": "mylab.warmth", "retries": 2})
    kind, words = (Silent, r"does not answer \(3 attempts\): division by zero") if attempts > 1 else (
        ZeroDivisionError, "division by zero")  # fmt: skip
    with pytest.raises(kind, match=words):
        fit(wanted, tmp_path / "run")


def test_a_mix_with_a_server_waits_for_it():
    far = Brightness()
    far.origin = SERVER
    mix = Mix([(Brightness(), Part(reward="a")), (far, Part(reward="b"))])
    from visfeedback.rewards._agreement import Agreement

    assert [is_server(one) for one in (mix, Agreement(mix), Mix([(Brightness(), Part(reward="a"))]))] == [
        True, True, False,
    ]  # fmt: skip


# what is saved


def test_what_is_wrong_would_be_wrong_again(online, tmp_path, reward):
    """NaN from the second round on: step 2 is saved, but only the same reward may go on from it."""
    reward.spoil = lambda scores: scores * (float("nan") if reward.asked > 1 else 1)
    with pytest.raises(
        Unscored, match="step 2 is saved, --resume goes on from it with the same settings, other"
    ) as caught:
        fit(online("ddpo", engine={"checkpoint_every": 0}), tmp_path)
    assert "\n" not in str(caught.value) and checkpoint.steps(tmp_path / "checkpoints") == [2]


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_any_error_leaves_the_state_saved(online, tmp_path, reward, monkeypatch, where):
    """In the second round, while it is scored or when it has been weighed: step 2 is saved without anything of it, so
    the run ends as if nothing had happened, memory of scores and all."""
    wanted = online("ddpo", method={"advantage": "prompt", "memory": 4, "least": 2}, reward={"normalise": "prompt"},
                    engine={"checkpoint_every": 0})  # fmt: skip
    fit(wanted, tmp_path / "whole")
    loss = DDPO.loss

    def broken(self, backbone, batch, ctx):
        if ctx.step == 2:
            raise RuntimeError("no more memory")
        return loss(self, backbone, batch, ctx)

    def fails(scores):
        if reward.asked > 1:
            raise RuntimeError("no more memory")
        return scores

    with monkeypatch.context() as patch:
        reward.asked = 0
        patch.setattr(*((reward, "spoil", fails) if where == "reward" else (DDPO, "loss", broken)))
        with pytest.raises(RuntimeError, match="no more memory") as caught:
            fit(wanted, tmp_path / "cut")
    assert caught.value.__notes__ == ["step 2 is saved, go on from it with --resume"]
    fit(wanted, tmp_path / "cut", resume=True)
    assert weights(tmp_path / "cut", 4) == weights(tmp_path / "whole", 4)
    whole, cut = (torch.load(tmp_path / name / "checkpoints/step-4/method.pt") for name in ("whole", "cut"))
    assert whole == cut


def test_weights_between_two_steps_are_not_saved(online, tmp_path, monkeypatch):
    """The optimizer fails in its third step: what it left may be half of it, so step 1's checkpoint is the newest."""
    step = torch.optim.AdamW.step
    done: list[int] = []

    def fails(self, *args, **kwargs):
        done.append(1)
        if len(done) == 3:
            raise RuntimeError("half done")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", fails)
    with pytest.raises(RuntimeError) as caught:
        fit(online("ddpo", engine={"checkpoint_every": 1}), tmp_path / "a")
    assert caught.value.__notes__ == ["step 2 could not be saved (its update had begun); --resume goes on from step 2"]
    done.clear()
    with pytest.raises(RuntimeError) as caught:
        fit(online("ddpo", engine={"checkpoint_every": 0}), tmp_path / "b")
    assert caught.value.__notes__ == ["step 2 could not be saved (its update had begun); there is no checkpoint"]


TWO = """
import json, os, sys
from pathlib import Path
from toy_training import Brightness, toy_settings
from visfeedback import rewards
from visfeedback.training.fit import fit

class Spoilt(Brightness):
    wrong = False
    def combine(self, images, texts, pairing="paired"):
        return super().combine(images, texts, pairing) * self._factor()
    def from_pixels(self, pixels, prompts):
        self.asked += 1
        return super().from_pixels(pixels, prompts) * self._factor()
    def _factor(self):
        return float("nan") if self.wrong and self.asked > 2 and os.environ["RANK"] == "1" else 1

model, out = sys.argv[1], Path(sys.argv[2])
one = Spoilt()
rewards.load = lambda *args, **more: one

def run(method, wrong, **more):
    one.wrong, one.asked = wrong, 0
    wanted = toy_settings(method, model, rollout={"micro_batch": 1}, optim={"batch_size": 2, "steps": 3},
                          engine={"checkpoint_every": 0})
    try:
        return fit(wanted, out / method, **more)["steps"]
    except Exception as error:
        return f"{type(error).__name__}: {error}"

said = [run("ddpo", True), run("draft", True), run("ddpo", False, resume=True)]
(out / f"{os.environ['RANK']}.json").write_text(json.dumps(said))
"""


@pytest.mark.slow
def test_what_fails_in_one_process_stops_all_with_the_state_saved(tiny_sd, tmp_path):
    """The second of two gets NaN for its third image: in DDPO's second round (2 images each), in DRaFT's third step.
    Both raise the same line, the step before is saved by both, and DDPO's run goes on."""
    (tmp_path / "two.py").write_text(TWO)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(tmp_path / "two.py")]
    done = subprocess.run(
        [*command, str(tiny_sd), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=250,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first[2] == 3
    assert first[0].startswith("Unscored: reward brightness gave nan") and "step 1 is saved" in first[0]
    assert first[1].startswith("InputError: brightness gave an image a score that is no number")
    assert "step 2 is saved" in first[1] and checkpoint.steps(tmp_path / "draft/checkpoints") == [2]


# what cannot work


def test_a_stop_needs_measures_on_the_way():
    with pytest.raises(ValueError, match=r"stop_drift = 0\.3 needs the drift on the way.*give drift_every"):
        Engine(stop_drift=0.3, drift_every=0)
    assert Engine(drift_every=0).stop_drift == 0


@pytest.mark.parametrize("method", ["ddpo", "raft"])
def test_prompts_that_a_reward_cannot_score_are_refused_before_anything_is_drawn(online, tmp_path, monkeypatch, method):
    """2 of 3 ask for no text: one without quotes, one with empty ones."""
    texts = ['a sign "OPEN"', "a sign", 'a sign ""']
    ocr = Ocr(lambda array: None, Origin(model="rapidocr", checkpoint_sha256="0"))
    for one in (ocr, Mix([(Brightness(), Part(reward="a")), (ocr, Part(reward="b"))])):
        monkeypatch.setattr(rewards, "load", lambda *args, one=one: one)
        with pytest.raises(
            InputError, match="ocr cannot score 2 of 3 prompts, the first is 'a sign': the prompt has no"
        ):
            prepare(online(method, rollout={"prompts": texts}), Run(tmp_path / "run"), False, silent)
    assert not (tmp_path / "run/config.toml").exists()


def test_a_program_is_shown_an_empty_picture_with_every_prompt(tiny_sd, tmp_path):
    """The verifier of the shapes world reads prompts of that world only."""
    wanted = toy_settings(
        "ddpo", tiny_sd, reward={"name": "shapes_verifier"}, rollout={"prompts": ["a red circle", "a dog"]}
    )
    with pytest.raises(Unscored, match="shapes_verifier cannot score 1 of 2 prompts, the first is 'a dog'"):
        prepare(wanted, Run(tmp_path / "run"), False, silent)


# nothing to learn


class Lengths(Brightness):
    """As long as its prompt, whatever the image, from the ``begin``-th batch on; a round is one."""

    begin = 1

    def combine(self, images, texts, pairing="paired"):
        scores = super().combine(images, texts, pairing)
        return torch.tensor([float(len(text)) for text in texts]) if self.asked >= self.begin else scores


@pytest.mark.parametrize(("method", "knobs"), [("ddpo", {"advantage": "group"}), ("d3po", {})])
def test_scores_that_differ_between_prompts_only_teach_nothing(online, tmp_path, monkeypatch, method, knobs):
    """Prompts of 1 to 3 letters, 2 images each: every advantage, every preference is 0. In the first round that is an
    error; later on it is said, and the steps of that round (3 and 4) have no gradient."""
    one = Lengths()
    monkeypatch.setattr(rewards, "load", lambda *args: one)
    wanted = online(method, method=knobs)
    with pytest.raises(
        Unscored, match=r"round 0: brightness sets none of 4 images apart.*nothing can be learned from it; choose"
    ) as caught:
        fit(wanted, tmp_path / "first")
    assert "\n" not in str(caught.value)
    one.asked, one.begin = 0, 2
    with pytest.warns(UserWarning, match="round 1: brightness sets none of 4 images apart, .*; it teaches nothing"):
        fit(wanted, tmp_path / "later")
    norms = [row["grad_norm"] for row in read_metrics(tmp_path / "later/metrics.jsonl")]
    assert norms[0] > 0 and norms[1] > 0 and norms[2:] == [0, 0]


@pytest.mark.parametrize("method", ["refl", "draft"])
def test_a_reward_that_does_not_look_gives_no_gradient(online, tmp_path, reward, monkeypatch, method):
    """0.5 whatever the pixels: the loss is (2 - 0.5) / 1000 or -0.5, the gradient exactly 0."""
    monkeypatch.setattr(Brightness, "from_pixels", lambda self, pixels, prompts: 0 * pixels.mean(dim=(1, 2, 3)) + 0.5)
    with pytest.raises(Unscored, match="gradient of the first step is 0: brightness does not depend on the image"):
        fit(online(method), tmp_path)


def test_images_that_are_good_enough_are_no_error(online, tmp_path, monkeypatch):
    """A hinge at -1 below brightness, which is at least 0: max(0, -1 - r) = 0 in every step."""
    wanted = online("refl", method={"objective": {"shape": "hinge", "margin": -1.0}}, optim={"steps": 2})
    with pytest.warns(UserWarning, match="first step teaches nothing: to the method every image is good enough"):
        assert fit(wanted, tmp_path)["steps"] == 2
