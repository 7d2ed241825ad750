"""Diffusion-DPO: closed forms, other people's conventions, and the mistakes that other implementations made."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from visfeedback.backbones.load import load
from visfeedback.methods.dpo import DPO, denoising_errors, shape
from visfeedback.types.batches import Condition, Pairs
from visfeedback.types.protocols import Context

B = 4


@pytest.fixture(scope="module")
def backbone(tiny_sd):
    loaded = load(str(tiny_sd), device="cpu")
    loaded.add_lora(rank=4, seed=1)
    return loaded


@pytest.fixture
def moved(backbone):
    """The policy a little away from the reference; put back afterwards."""
    before = [p.detach().clone() for p in backbone.parameters()]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    yield backbone
    with torch.no_grad():
        for parameter, value in zip(backbone.parameters(), before, strict=True):
            parameter.copy_(value)


def pairs(backbone, probability=1.0, weight=1.0, seed=0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    winner, loser, noise = torch.randn((3, B, 4, 8, 8), generator=generator)
    return Pairs(
        winner=winner, loser=loser, condition=backbone.encode_text(["a", "b", "c", "d"]),
        probability=torch.full((B,), probability), weight=torch.full((B,), weight), noise=noise,
        t=backbone.process.sample_t(B, generator),
    )  # fmt: skip


def context() -> Context:
    return Context(torch.Generator().manual_seed(0))


def test_errors_are_the_mean_square_of_each_image_by_itself(moved):
    """Row i equals a call with image i alone: no mean over the batch ever (invoke-training's mistake)."""
    batch = pairs(moved)
    together = denoising_errors(moved, batch)
    for i in range(B):
        one = batch.rows(slice(i, i + 1))
        for column, image in enumerate((one.winner, one.loser)):
            x_t = moved.process.add_noise(image, one.noise, one.t)
            prediction = moved.predict(x_t, one.t, one.condition)
            expected = ((prediction - one.noise) ** 2).mean()
            torch.testing.assert_close(together[i, column], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("probability", [0.5, 0.8, 1.0])
def test_loss_is_ln_2_while_policy_equals_reference(backbone, probability):
    """inside = 0, and -p ln(1/2) - (1 - p) ln(1/2) = ln 2 for every p."""
    loss, metrics = DPO().loss(backbone, pairs(backbone, probability), context())
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["implicit_accuracy"] == 0.5, "a tie of the logits counts half"
    assert metrics["gradient_factor"] == 0.5


def test_the_other_variants_start_at_their_own_constants(backbone):
    """hinge: relu(1 - 0) = 1; ipo: (0 - 1/2)^2 = 1/4."""
    batch = pairs(backbone)
    assert DPO(variant="hinge").loss(backbone, batch, context())[0].item() == pytest.approx(1, abs=1e-6)
    assert DPO(variant="ipo").loss(backbone, batch, context())[0].item() == pytest.approx(0.25, abs=1e-6)


def test_official_formula(moved):
    """The released code: model_diff, ref_diff, inside = -0.5 beta (model_diff - ref_diff), -logsigmoid, mean."""
    batch, beta = pairs(moved), 5000.0
    policy = denoising_errors(moved, batch).detach()
    with moved.weights("reference"):
        reference = denoising_errors(moved, batch).detach()
    inside = -0.5 * beta * ((policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1]))
    loss, metrics = DPO(beta=beta).loss(moved, batch, context())
    assert loss.item() == pytest.approx(-torch.log(torch.sigmoid(inside.double())).mean().item(), rel=1e-5)
    assert metrics["margin"] == pytest.approx(inside.mean().item(), rel=1e-4)
    assert metrics["gradient_factor"] == pytest.approx(torch.sigmoid(-inside).mean().item(), rel=1e-4)
    assert metrics["implicit_accuracy"] == pytest.approx((inside > 0).float().mean().item())


POLICY = torch.tensor([[0.10, 0.20], [0.40, 0.10], [0.30, 0.30]])
REFERENCE = torch.tensor([[0.15, 0.15], [0.30, 0.15], [0.28, 0.31]])
ONE = torch.ones(3)


@pytest.mark.parametrize("variant", ["sigmoid", "hinge", "ipo"])
def test_diffusers_formula_at_half_of_our_beta(variant):
    """diffusers: logits = ref_diff - model_diff; -logsigmoid(b l), relu(1 - b l), (l - 1/(2b))^2 with b = beta/2.
    Its ipo differs from ours by the constant 4/beta^2."""
    ours, beta = DPO(beta=20.0, variant=variant), 10.0
    logits = (REFERENCE[:, 0] - REFERENCE[:, 1]) - (POLICY[:, 0] - POLICY[:, 1])
    expected = {
        "sigmoid": -torch.nn.functional.logsigmoid(beta * logits),
        "hinge": torch.relu(1 - beta * logits),
        "ipo": (logits - 1 / (2 * beta)) ** 2 * beta**2,
    }[variant].mean()
    torch.testing.assert_close(ours.objective(ours.inside(POLICY, REFERENCE), ONE, ONE), expected)


def test_the_mean_is_taken_after_the_logsigmoid():
    """diffusers#6702: logsigmoid of a mean is another loss. With logits +4 and -4 the mean is 0, whose loss is ln 2;
    the right value is (log(1 + e^-4) + log(1 + e^4)) / 2 = 2.0181."""
    inside = torch.tensor([4.0, -4.0])
    value = DPO().objective(inside, torch.ones(2), torch.ones(2)).item()
    assert value == pytest.approx((math.log1p(math.exp(-4)) + math.log1p(math.exp(4))) / 2, rel=1e-6)
    assert abs(value - math.log(2)) > 1


def test_a_tie_pulls_to_the_middle():
    """p = .5 is the same seen from both sides, and its gradient at 0 is 0; diffusers trains a tie as a win."""
    inside = torch.tensor([0.7], requires_grad=True)
    half = torch.tensor([0.5])
    torch.testing.assert_close(
        DPO().objective(inside, half, torch.ones(1)), DPO().objective(-inside, half, torch.ones(1))
    )
    zero = torch.zeros(1, requires_grad=True)
    DPO().objective(zero, half, torch.ones(1)).backward()
    assert zero.grad is not None and zero.grad.item() == 0


def test_soft_labels_have_their_minimum_at_the_log_odds():
    """d/dx of p softplus(-x) + (1 - p) softplus(x) is sigmoid(x) - p: zero at x = log(p / (1 - p))."""
    p = torch.tensor([0.8])
    x = torch.logit(p).requires_grad_()
    DPO().objective(x, p, torch.ones(1)).backward()
    assert x.grad is not None and abs(x.grad.item()) < 1e-7


def test_dpo_positive_charges_for_a_better_image_that_got_worse():
    """beta = 20: the logit is -10 * ((.6 - .9) - (.5 - .7)) = 1. lambda = 2 takes 10 * 2 * (.6 - .5) = 2 of it when the
    first image is better, and 10 * 2 * (.9 - .7) = 4 of -1 when the second one is; an easier image costs nothing."""
    method = DPO(beta=20, positive=2)
    policy, reference = torch.tensor([[0.6, 0.9]]), torch.tensor([[0.5, 0.7]])
    for p, logit in ((1.0, 1.0 - 2.0), (0.0, -1.0 - 4.0)):
        value = method.objective(
            method.inside(policy, reference), torch.tensor([p]), torch.ones(1), method.lost(policy, reference)
        )
        torch.testing.assert_close(value, -torch.nn.functional.logsigmoid(torch.tensor(logit)))
    assert method.lost(reference - 0.1, reference).abs().max() == 0


def test_dpo_positive_treats_the_images_of_a_pair_alike():
    """Exchanging the images and p for 1 - p changes nothing."""
    method = DPO(beta=20, positive=3)
    policy, reference = torch.rand(5, 2), torch.rand(5, 2)
    p = torch.rand(5)
    values = [
        method.objective(method.inside(a, b), q, torch.ones(5), method.lost(a, b))
        for a, b, q in ((policy, reference, p), (policy.flip(1), reference.flip(1), 1 - p))
    ]
    torch.testing.assert_close(*values)


def test_weights_scale_pairs():
    """mean(w l): weights (2, 0) of two pairs give the first pair's loss."""
    inside = torch.tensor([0.3, -1.0])
    value = DPO().objective(inside, torch.ones(2), torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(value, shape("sigmoid", inside[:1])[0])


def test_reference_errors_from_the_batch_give_the_same_loss(moved):
    batch = pairs(moved)
    method = DPO()
    live, _ = method.loss(moved, batch, context())
    errors = method.reference(moved, batch)
    assert errors.shape == (B, 2) and not errors.requires_grad
    cached = Pairs(**{**vars(batch), "reference_errors": errors})
    assert method.loss(moved, cached, context())[0].item() == pytest.approx(live.item(), abs=1e-7)


def test_gradients_reach_the_adapter_and_nothing_else(moved):
    loss, _ = DPO().loss(moved, pairs(moved), context())
    loss.backward()
    trained = {id(parameter) for parameter in moved.parameters()}
    for _, parameter in moved.pipe.unet.named_parameters():
        if id(parameter) in trained:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0
        else:
            assert parameter.grad is None
    assert all(p.grad is None for net in (moved.pipe.vae, moved.pipe.text_encoder) for p in net.parameters())
    for parameter in moved.parameters():
        parameter.grad = None


def test_a_step_down_the_gradient_makes_the_winner_easier(moved):
    """First order: the loss falls along its negative gradient."""
    batch, method = pairs(moved), DPO(beta=100.0)
    loss, _ = method.loss(moved, batch, context())
    gradients = torch.autograd.grad(loss, list(moved.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
            parameter.sub_(1e-3 * gradient / max(gradient.norm().item(), 1e-12))
    assert method.loss(moved, batch, context())[0] < loss


def test_winner_and_loser_share_one_network_call(backbone, monkeypatch):
    sizes = []
    predict = backbone.predict

    def counted(x_t, t, condition):
        sizes.append((len(x_t), torch.equal(t[:B], t[B:])))
        return predict(x_t, t, condition)

    monkeypatch.setattr(backbone, "predict", counted)
    denoising_errors(backbone, pairs(backbone))
    assert sizes == [(2 * B, True)], "one call of 2B images, winner and loser at the same t"


def test_v_prediction_targets_come_from_the_process(backbone, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(backbone, "process", replace(backbone.process, prediction_type="v_prediction"))
    batch = pairs(backbone)
    x_t = backbone.process.add_noise(batch.winner, batch.noise, batch.t)
    target = backbone.process.target(batch.winner, batch.noise, batch.t)
    expected = (backbone.predict(x_t, batch.t, batch.condition) - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(denoising_errors(backbone, batch)[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_conventions_of_one_beta():
    """Half in diffusers; divided by C*h*w where errors are summed: 4*64*64 = 16384."""
    known = DPO(beta=5000.0).conventions((4, 64, 64))
    assert known == {"beta": 5000.0, "beta_diffusers": 2500.0, "beta_sum_reduction": 5000.0 / 16384}


def test_knobs_are_checked():
    with pytest.raises(ValidationError):
        DPO(beta=0)
    with pytest.raises(ValidationError):
        DPO.model_validate({"variant": "orpo"})
    with pytest.raises(ValidationError):
        DPO.model_validate({"betta": 1})


def test_pairs_of_different_prompts_keep_their_conditions(moved):
    """Swapping the prompts of two rows changes exactly those rows."""
    batch = pairs(moved)
    order = [1, 0, 2, 3]
    swapped = Pairs(**{**vars(batch), "condition": Condition(tokens=batch.condition.tokens[order])})
    before, after = denoising_errors(moved, batch), denoising_errors(moved, swapped)
    assert not torch.allclose(before[:2], after[:2], rtol=1e-4)
    torch.testing.assert_close(before[2:], after[2:])


def group_of(backbone, images=4, seed=3) -> Pairs:
    """All pairs among the images of one prompt under one noise; ``same`` numbers the images."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((images, 4, 8, 8), generator=generator)
    noise, t = torch.randn((1, 4, 8, 8), generator=generator), backbone.process.sample_t(1, generator)
    rows = [(a, b) for a in range(images) for b in range(a + 1, images)]
    count = len(rows)
    winner, loser = (latents[[row[side] for row in rows]] for side in (0, 1))
    return Pairs(
        winner=winner, loser=loser, condition=backbone.encode_text(["a"] * count), probability=torch.ones(count),
        weight=torch.ones(count), noise=noise.repeat(count, 1, 1, 1), t=t.repeat(count), same=torch.tensor(rows),
    )  # fmt: skip


def test_a_group_costs_as_many_evaluations_as_it_has_images(moved, monkeypatch):
    """6 pairs among 4 images: 4 evaluations instead of 12, the same loss, the same gradient."""
    from dataclasses import replace

    sizes, predict = [], moved.predict
    monkeypatch.setattr(moved, "predict", lambda x_t, t, c: sizes.append(len(x_t)) or predict(x_t, t, c))
    batch, found = group_of(moved), []
    for variant in (batch, replace(batch, same=None)):
        loss, metrics = DPO(beta=100.0).loss(moved, variant, context())
        found.append((loss.item(), metrics, torch.autograd.grad(loss, list(moved.parameters()))))
    assert sizes == [4, 4, 12, 12], "policy and reference, grouped and not"
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-4)
    for a, b in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
