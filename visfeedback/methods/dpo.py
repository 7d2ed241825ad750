"""Diffusion-DPO: preferred images become easier to denoise than rejected ones, relative to the reference.

Paper: Wallace et al., "Diffusion Model Alignment Using Direct Preference Optimization" (2023), eq. 14 and the
authors' released code, whose convention is used here. Per image, with one (noise, t) for winner and loser:

    L(x)   = mean over C,h,w of (pred - target)^2
    inside = -0.5 * beta * [(L_w - L_l) - (Lref_w - Lref_l)]
    loss   = -mean(weight * [p * logsigmoid(inside) + (1 - p) * logsigmoid(-inside)])

p is the probability that the winner is better: p = 1 is the paper's loss, p < 1 conservative DPO, p = .5 a tie, which
pulls the two together. T and the weighting of eq. 14 are constants absorbed in beta. The mean is taken after
logsigmoid, pair by pair. Left out: the turbo and refiner variants, which only change how t is drawn.

The loss only asks for a difference, and long training finds it by denoising both images worse. DPO-Positive (Pal et
al. 2024, arXiv 2402.13228, eq. 3; ``positive`` is their lambda) takes from the logit of whichever image is better

    0.5 * beta * positive * max(0, L - Lref)

Other conventions of the same beta: diffusers' scripts drop the 0.5 (their beta is half of this one), and code that
sums over C,h,w instead of taking the mean uses beta / (C*h*w). See `DPO.conventions`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from visfeedback.types.batches import Condition, Pairs
from visfeedback.types.protocols import Backbone, Context
from visfeedback.types.records import Frozen


class DPO(Frozen):
    """Knobs of Diffusion-DPO."""

    eats: ClassVar[Literal["pairs"]] = "pairs"

    beta: float = Field(default=2000.0, gt=0)
    """strength of the pull to the reference, official convention (twice the beta of diffusers' script)"""
    variant: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """shape of the loss: `sigmoid` is the paper's, `hinge` is SLiC's, `ipo` regresses to a finite margin"""
    positive: float = Field(default=0.0, ge=0)
    """DPO-Positive: how much it costs when the better image is denoised worse than by the reference; 0 = nothing"""

    def loss(self, backbone: Backbone, batch: Pairs, ctx: Context) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of a batch; reference errors are computed here unless the batch brings them."""
        policy = denoising_errors(backbone, batch)  # (B, 2)
        cached = batch.reference_errors
        reference = self.reference(backbone, batch) if cached is None else cached  # (B, 2)
        inside = self.inside(policy, reference)
        loss = self.objective(inside, batch.probability, batch.weight, self.lost(policy, reference))
        return loss, self._metrics(policy.detach(), reference, inside.detach())

    def reference(self, backbone: Backbone, batch: Pairs) -> Tensor:
        """(B, 2) errors of winner and loser under the reference: constants of (pair, noise, t), so the loop may
        compute them once and hand them in as ``batch.reference_errors``."""
        with torch.no_grad(), backbone.weights("reference"):
            return denoising_errors(backbone, batch)

    def inside(self, policy: Tensor, reference: Tensor) -> Tensor:
        """(B,) logits that the winner is better, from (B, 2) errors of policy and reference."""
        gap, gap_reference = policy[:, 0] - policy[:, 1], reference[:, 0] - reference[:, 1]
        return -0.5 * self.beta * (gap - gap_reference)

    def lost(self, policy: Tensor, reference: Tensor) -> Tensor | None:
        """(B, 2) what DPO-Positive takes from the logit of an image that is better, from (B, 2) errors."""
        return 0.5 * self.beta * self.positive * F.relu(policy - reference) if self.positive else None

    def objective(self, inside: Tensor, probability: Tensor, weight: Tensor, lost: Tensor | None = None) -> Tensor:
        """Scalar loss of (B,) logits, (B,) probabilities that the winner is better and (B,) weights."""
        first, second = (inside, -inside) if lost is None else (inside - lost[:, 0], -inside - lost[:, 1])
        per_pair = probability * shape(self.variant, first) + (1 - probability) * shape(self.variant, second)
        return (weight * per_pair).mean()

    def conventions(self, latent: tuple[int, ...]) -> dict[str, float]:
        """This beta as other code would write it; ``latent`` is (C, h, w)."""
        return {
            "beta": self.beta,
            "beta_diffusers": self.beta / 2,
            "beta_sum_reduction": self.beta / torch.Size(latent).numel(),
        }

    def _metrics(self, policy: Tensor, reference: Tensor, inside: Tensor) -> dict[str, float]:
        (winner, loser), (reference_winner, reference_loser) = policy.mean(0), reference.mean(0)
        values = {
            "implicit_accuracy": ((inside > 0).float() + 0.5 * (inside == 0).float()).mean(),
            "margin": inside.mean(),
            "gradient_factor": torch.sigmoid(-inside).mean(),
            "error_winner": winner,
            "error_loser": loser,
            "reference_error_winner": reference_winner,
            "reference_error_loser": reference_loser,
        }
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))  # one device sync


def shape(variant: str, inside: Tensor) -> Tensor:
    """Loss (B,) of logits (B,) when the winner is surely better.

    hinge: relu(1 - inside). ipo: Azar et al. 2023 eq. 17 in these units: diffusers' (m - 1/(2*beta'))^2 with
    m = 2*inside/beta and beta' = beta/2 is (4/beta^2) * (inside - 1/2)^2; the constant is dropped so that
    gradients do not vanish into Adam's epsilon.
    """
    if variant == "hinge":
        return F.relu(1 - inside)
    if variant == "ipo":
        return (inside - 0.5).square()
    return -F.logsigmoid(inside)


def denoising_errors(backbone: Backbone, batch: Pairs) -> Tensor:
    """(B, 2) errors L(winner), L(loser) of the current weights, in fp32; one network call for both.

    An image that is in several pairs under one noise (``batch.same``) is evaluated once: K images of a prompt make
    K(K-1)/2 pairs and cost K evaluations instead of K(K-1).
    """
    keep, back = _distinct(batch)
    images, noise = torch.cat([batch.winner, batch.loser])[keep], batch.noise.repeat(2, 1, 1, 1)[keep]
    t, condition = batch.t.repeat(2)[keep], Condition.cat([batch.condition, batch.condition]).rows(keep)
    prediction = backbone.predict(backbone.process.add_noise(images, noise, t), t, condition)
    target = backbone.process.target(images, noise, t)
    errors = (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))  # never a mean over images
    return errors[back].view(2, -1).T


def _distinct(batch: Pairs) -> tuple[Tensor | slice, Tensor | slice]:
    """Which rows of [winners, losers] to evaluate, and for each row which of these it is."""
    if batch.same is None:
        return slice(None), slice(None)
    numbers = batch.same.T.reshape(-1)  # (2B,)
    first = numbers.new_full((int(numbers.max()) + 1,), len(numbers))
    rows = torch.arange(len(numbers), device=numbers.device)
    return first.scatter_reduce(0, numbers, rows, "amin"), numbers


Method = DPO
