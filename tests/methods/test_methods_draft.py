"""DRaFT-K, DRaFT-LV and AlignProp: gradients against finite differences, and how many steps have one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.test_methods_refl import Broken, context, prompts
from tests.support.tiny_backbone import Brightness, TinyBackbone, derivatives
from visfeedback.methods._start import start
from visfeedback.methods.draft import DRaFT
from visfeedback.methods.refl import ReFL
from visfeedback.plugins import InputError
from visfeedback.sampling.differentiable import decoded

PLACES = (0, 9, 27, 63)


@pytest.fixture
def tiny() -> TinyBackbone:
    return TinyBackbone()


@pytest.mark.parametrize(("guidance", "eta"), [(1.0, 0.0), (3.0, 1.0)])
def test_the_gradient_through_all_steps_equals_finite_differences(tiny, guidance, eta):
    """K as large as the number of steps, a graph through both branches: nothing is approximate."""
    method, batch = DRaFT(last=99, guide_whole=True), prompts(5, guidance, eta)
    method.loss(tiny, batch, context())[0].backward()
    with torch.no_grad():
        expected = derivatives(lambda: method.loss(tiny, batch, context())[0], tiny.linear, PLACES)
    got = tiny.linear.grad.view(-1)[list(PLACES)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_low_variance_adds_looks_at_the_same_image(tiny):
    """One call an image and look more; the loss is the mean of the 1 + n terms."""
    tiny.calls = tiny.graphs = 0
    loss, metrics = DRaFT(last=1, noisings=3).loss(tiny, prompts(4), context())
    assert (tiny.calls, tiny.graphs) == (2 * (4 + 3), 2 * (1 + 3))
    assert metrics["steps_with_gradient"] == 1
    alone = DRaFT(last=1).loss(tiny, prompts(4), context())[0]
    assert loss.item() != alone.item()
    assert loss.item() == pytest.approx(alone.item(), rel=0.5), "the same image under other noise of the last step"


def test_a_look_has_the_gradient_of_its_one_step(tiny):
    """The image is a constant of a look: finite differences of reward(step(add_noise(image, eps, t_1))) alone."""
    method, batch = DRaFT(last=1, noisings=1), prompts(4)
    image = torch.randn((2, 2, 2, 2), dtype=torch.float64, requires_grad=True)

    def look() -> torch.Tensor:
        begun = start(tiny, batch)  # its generators begin anew, so the noise is the same every time
        pixels = decoded(tiny, method._noised(tiny, begun, image, 0.0))
        return method.objective.losses(Brightness(), pixels, ["a", "b"])[0].mean()

    look().backward()
    assert image.grad is None
    with torch.no_grad():
        expected = derivatives(look, tiny.linear, PLACES)
    got = tiny.linear.grad.view(-1)[list(PLACES)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_how_many_steps_have_a_gradient():
    generator = torch.Generator().manual_seed(0)
    assert DRaFT(last=1).first_step(50, generator) == 49
    assert DRaFT(last=10).first_step(50, generator) == 40
    assert DRaFT(last=99).first_step(50, generator) == 0
    uniform = {DRaFT(truncation="uniform").first_step(10, generator) for _ in range(300)}
    assert uniform == set(range(10)), "AlignProp draws K uniformly, once a batch"
    normal = torch.tensor([DRaFT(truncation="normal").first_step(50, generator) for _ in range(2000)]).float()
    assert normal.mean().item() == pytest.approx(42, abs=0.5), "N(42, 5) of 50 steps"
    assert normal.std().item() == pytest.approx(5, abs=0.5)
    assert normal.min() >= 0 and normal.max() <= 49


@pytest.mark.parametrize(("knobs", "branches"), [({}, 2), ({"guide_whole": False}, 1)])
def test_steps_before_the_truncation_have_no_graph(tiny, knobs, branches):
    DRaFT(last=2, **knobs).loss(tiny, prompts(6, 3.0), context())
    assert (tiny.calls, tiny.graphs) == (2 * 2 * 6, 2 * 2 * branches)


def test_checkpointing_changes_no_gradient(tiny):
    found = []
    for checkpointing in (False, True):
        tiny.zero_grad()
        DRaFT(last=3, checkpointing=checkpointing).loss(tiny, prompts(5, 3.0, 1.0), context())[0].backward()
        found.append(tiny.linear.grad.clone())
    assert torch.equal(*found)


def test_the_loss_falls_when_its_gradient_is_followed(tiny):
    optimizer = torch.optim.Adam(tiny.parameters(), lr=0.02)
    rewards = []
    for _ in range(30):
        optimizer.zero_grad()
        loss, metrics = DRaFT(last=1).loss(tiny, prompts(4), context())
        loss.backward()
        optimizer.step()
        rewards.append(metrics["reward"])
    assert rewards[-1] > rewards[0] + 0.05


def test_low_variance_is_for_one_step():
    with pytest.raises(ValueError, match=r"truncation = \"fixed\" and last = 1"):
        DRaFT(noisings=2, last=3)
    with pytest.raises(ValueError, match="noisings"):
        DRaFT(noisings=2, truncation="uniform")


def test_a_reward_without_a_gradient_is_one_line(tiny):
    with pytest.raises(InputError, match="do not depend on the image"):
        DRaFT().loss(tiny, prompts(), context(Broken(lambda p: torch.zeros(2))))


@pytest.mark.parametrize("method", [DRaFT(last=1), ReFL()])
def test_a_watched_reward_is_logged_and_not_learned_from(tiny, method):
    """It is shown the pixels that the trained one sees, without a graph, and changes no gradient."""
    seen: list[torch.Tensor] = []

    def watch(pixels, texts):
        seen.append(pixels)
        assert list(texts) == ["a red apple", "eel"]
        return torch.tensor([0.25, 0.75])

    gradients = []
    for ctx in (context(), dataclasses.replace(context(), watch=watch)):
        tiny.zero_grad()
        loss, metrics = method.loss(tiny, prompts(4), ctx)
        loss.backward()
        gradients.append(tiny.linear.grad.clone())
        assert metrics.get("watched_reward") == (0.5 if ctx.watch else None)
    assert torch.equal(*gradients)
    torch.testing.assert_close(
        Brightness().from_pixels(seen[0], ["a red apple", "eel"]).mean().item(), metrics["reward"], rtol=1e-6, atol=0
    )
