"""Gradients through the sampler against finite differences, and what has no graph where none is used."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_backbone import Brightness, TinyBackbone, derivatives
from visfeedback.sampling.differentiable import Guided, Sources, decoded, descend, predicted_image, sample

STEPS, PLACES = 5, (0, 9, 27, 63)
PROMPTS = ("a red apple", "eel")


@pytest.fixture
def tiny() -> TinyBackbone:
    return TinyBackbone()


def guided(tiny: TinyBackbone, scale: float = 1.0, **more) -> Guided:
    without = tiny.encode_text(["", ""]) if scale > 1 else None
    return Guided(tiny, tiny.encode_text(PROMPTS), without, scale, **more)


def noise(dtype=torch.float64) -> torch.Tensor:
    return Sources.of((1, 2), torch.device("cpu")).noise((2, 2, 2), dtype)


def loss(tiny: TinyBackbone, predict: Guided, first: int, eta: float = 0.0, x=None) -> torch.Tensor:
    """Minus the reward of images of fixed seeds; ``x`` replaces what the steps before ``first`` gave."""
    times, sources = tiny.process.times(STEPS), Sources.of((1, 2), torch.device("cpu"))
    if x is None:
        image = sample(predict, tiny.process, noise(), times, sources, first, eta)
    else:
        image = descend(predict, tiny.process, x, times[first:], sources, eta)
    return -Brightness().from_pixels(decoded(tiny, image, predict.checkpointed), PROMPTS).mean()


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_whole_gradient_equals_finite_differences(tiny, eta, scale):
    """With all steps and both branches in the graph nothing is cut: relative error of central differences ~1e-9."""
    predict = guided(tiny, scale, whole_graph=True)
    loss(tiny, predict, 0, eta).backward()
    for parameter in (tiny.linear, tiny.told, tiny.bias):
        places = [p for p in PLACES if p < parameter.numel()]
        with torch.no_grad():
            expected = derivatives(lambda: loss(tiny, predict, 0, eta), parameter, places)
        got = parameter.grad.view(-1)[places]
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("last", [1, 2, 4])
def test_the_gradient_of_the_last_steps_treats_what_was_before_as_constant(tiny, last):
    """K last steps: the same loss begun at the x that the steps before gave with the unchanged weights."""
    first, predict = STEPS - last, guided(tiny)
    loss(tiny, predict, first).backward()
    with torch.no_grad():
        frozen = descend(predict, tiny.process, noise(), tiny.process.times(STEPS)[: first + 1],
                         Sources.of((1, 2), torch.device("cpu")))  # fmt: skip
        expected = derivatives(lambda: loss(tiny, predict, first, x=frozen), tiny.linear, PLACES)
    torch.testing.assert_close(
        tiny.linear.grad.view(-1)[list(PLACES)], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9
    )


def test_cutting_equals_detaching_every_prediction_before_the_cut(tiny):
    """AlignProp's released code detaches predictions and keeps x's own path, which no parameter reaches."""
    first, predict, times = 3, guided(tiny), tiny.process.times(STEPS)
    loss(tiny, predict, first).backward()
    ours = tiny.linear.grad.clone()
    tiny.zero_grad()
    x = noise()
    for k in range(STEPS):
        t, t_next = (value.expand(2) for value in times[k : k + 2])
        prediction = predict(x, t)
        x = tiny.process.step(prediction.detach() if k < first else prediction, x, t, t_next, 0.0)[0]
    (-Brightness().from_pixels(tiny.decode(x), PROMPTS).mean()).backward()
    torch.testing.assert_close(ours, tiny.linear.grad, rtol=1e-12, atol=0)


def test_graphs_exist_only_where_they_are_used(tiny):
    """5 steps x 2 images, 2 branches: 20 rows; a graph for the conditional branch of the last 2 steps alone: 4."""
    loss(tiny, guided(tiny, 3.0), 3)
    assert (tiny.calls, tiny.graphs) == (20, 4)
    tiny.calls = tiny.graphs = 0
    loss(tiny, guided(tiny, 3.0, whole_graph=True), 3)
    assert (tiny.calls, tiny.graphs) == (20, 8)
    tiny.graphs = 0
    assert not sample(guided(tiny), tiny.process, noise(), tiny.process.times(STEPS), Sources.of((1, 2), tiny.device),
                      STEPS).requires_grad  # fmt: skip
    assert tiny.graphs == 0


def test_checkpointing_changes_cost_and_nothing_else(tiny):
    found = []
    for checkpointed in (False, True):
        tiny.zero_grad()
        value = loss(tiny, guided(tiny, 3.0, checkpointed=checkpointed), 2)
        before = tiny.calls
        value.backward()
        found.append((value.item(), tiny.linear.grad.clone(), tiny.calls - before))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert (found[0][2], found[1][2]) == (0, 6), "3 steps of 2 images are computed again; the free branch is not"


def test_an_image_depends_on_its_own_seed_alone(tiny):
    """Row 1 of a batch of two equals the batch of its seed and prompt alone, with random steps, too."""
    times = tiny.process.times(STEPS)
    both = sample(guided(tiny), tiny.process, noise(), times, Sources.of((1, 2), tiny.device), 0, 1.0)
    alone = Sources.of((2,), tiny.device)
    predict = Guided(tiny, tiny.encode_text(PROMPTS[1:]))
    one = sample(
        predict, tiny.process, Sources.of((2,), tiny.device).noise((2, 2, 2), torch.float64), times, alone, 0, 1.0
    )
    torch.testing.assert_close(both[1:], one, rtol=1e-12, atol=0)


def test_sampling_equals_the_one_with_memory(tiny_sd):
    """The same seeds, steps and guidance as ``rollout.roll`` give the same latents."""
    from visfeedback.backbones.load import load
    from visfeedback.sampling.rollout import Walk, roll

    backbone = load(str(tiny_sd), device="cpu")
    backbone.add_lora(rank=2)
    told, free = backbone.encode_text(PROMPTS), backbone.encode_text(["", ""])
    expected = roll(backbone, told, free, (1, 2), backbone.latent_shape, Walk(4, 3.0, eta=0.0)).images
    sources = Sources.of((1, 2), backbone.device)
    start = sources.noise(backbone.latent_shape)
    got = sample(Guided(backbone, told, free, 3.0), backbone.process, start, backbone.process.times(4), sources, 4)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_predicted_image_inverts_the_noising(tiny):
    """If the network says the very noise, x0 comes back: to_x0(eps, add_noise(x0, eps, t), t) = x0."""
    clean, eps = noise(), noise().flip(0)
    t = torch.tensor([0.4, 0.8])
    x = tiny.process.add_noise(clean, eps, t)
    torch.testing.assert_close(predicted_image(lambda x_t, t: eps, tiny.process, x, t), clean)
