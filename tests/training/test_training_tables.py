"""What names a table: everything its rows follow from, and nothing else."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visfeedback.training.tables import Worker
from visfeedback.types.protocols import silent

TABLES = ("moments", "text", "reference")


def names(settings: Any, **backbone: Any) -> dict[str, str]:
    """Digest of each table."""
    known = {"revision": "r", "adapter_revision": "a", "device": torch.device("cpu"), "resolution": 64}
    worker = Worker(settings, SimpleNamespace(**known | backbone), Path(), silent, contextlib.nullcontext, lambda: None)
    return {name: worker._depends_on(name) for name in TABLES}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in TABLES if before[name] != after[name]}


@pytest.mark.parametrize(
    ("backbone", "tables"),
    [
        ({"revision": "other"}, set(TABLES)),
        ({"adapter_revision": "other"}, set(TABLES)),
        ({"device": torch.device("cuda")}, set(TABLES)),
        ({"resolution": 32}, {"moments", "reference"}),
    ],
)
def test_another_network_is_another_table(settings, backbone, tables):
    assert changed(names(settings()), names(settings(), **backbone)) == tables


@pytest.mark.parametrize(
    ("knobs", "tables"),
    [
        ({"model": {"dtype": "bf16"}}, set(TABLES)),
        ({"data": {"resolution": 32}}, {"moments", "reference"}),
        ({"model": {"reference": "bare"}}, {"reference"}),
        ({"method": {"variant": "ipo"}}, {"reference"}),
        ({"engine": {"seed": 1}}, {"reference"}),
        ({"data": {"prompt_drop": 0.1}}, {"reference"}),
        ({"data": {"flip": True}}, {"reference"}),
        ({"data": {"group": True}}, {"reference"}),
        ({"data": {"times": [0.1, 1.0]}}, {"reference"}),
        ({"engine": {"mixed_precision": "bf16"}}, {"reference"}),
        ({"optim": {"batch_size": 3}}, {"reference"}),
        ({"optim": {"steps": 9}}, set()),
        ({"engine": {"keep": 9}}, set()),
        ({"lora": {"dropout": 0.5}}, set()),
    ],
)
def test_a_knob_names_the_tables_that_follow_from_it(settings, knobs, tables):
    assert changed(names(settings()), names(settings(**knobs))) == tables


def test_threads_decide_the_last_bits(settings):
    before, threads = names(settings()), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert changed(before, names(settings())) == set(TABLES)
    finally:
        torch.set_num_threads(threads)
