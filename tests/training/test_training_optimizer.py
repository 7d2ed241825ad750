"""Learning rates and the optimizer."""

from __future__ import annotations

import math

import pytest
import torch

from visfeedback.plugins import InputError
from visfeedback.training.optimizer import build_optimizer, learning_rate
from visfeedback.training.settings import Optim


def test_warmup_rises_from_zero_and_then_the_schedule_takes_over():
    """lr 1, warmup 4 of 12 steps: 0, 1/4, 1/2, 3/4, 1, and over the 8 left linear falls by 1/8 a step."""

    def rates(schedule):
        optim = Optim(lr=1.0, warmup=4, steps=12, schedule=schedule)
        return [learning_rate(optim, step) for step in range(12)]

    assert rates("constant_with_warmup") == [0, 0.25, 0.5, 0.75] + [1] * 8
    assert rates("linear")[4:] == [1 - i / 8 for i in range(8)]
    assert rates("cosine")[4:] == pytest.approx([(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])


def test_every_knob_of_adamw_reaches_it():
    optim = Optim(lr=0.1, betas=(0.5, 0.6), epsilon=0.7, weight_decay=0.8)
    built = build_optimizer([torch.nn.Parameter(torch.zeros(1))], optim)
    found = {name: built.param_groups[0][name] for name in ("lr", "betas", "eps", "weight_decay")}
    assert found == {"lr": 0.1, "betas": (0.5, 0.6), "eps": 0.7, "weight_decay": 0.8}


def test_eight_bit_states_need_their_package(monkeypatch):
    monkeypatch.setattr("visfeedback.training.optimizer.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        build_optimizer([torch.nn.Parameter(torch.zeros(1))], Optim(eight_bit=True))
