"""The network that good / bad labels are fitted with: an MLP over image and prompt features, ending in a sigmoid.

Lee et al. 2023 use two hidden layers of 1,024 over CLIP features; here the features are standardised over what is
learned from, and the product of image and prompt vectors stands beside the two.
May import: nothing of the package.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LabelHead(nn.Module):
    """Probability that the image is good for the prompt."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout),
                nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1),
            )  # fmt: skip

    def forward(self, features: Tensor, base: Tensor | None = None) -> Tensor:
        """Features (..., F) -> (...) in [0, 1]. ``base``, the base reward's own scores, is not read."""
        return torch.sigmoid(self.body((features - self.mean) / self.std)[..., 0])

    @torch.no_grad()
    def start(self, features: Tensor) -> None:
        """Standardise by what is learned from."""
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0, correction=0).clamp_min(1e-6))
