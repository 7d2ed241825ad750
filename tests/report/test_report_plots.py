"""Curves and pictures: arithmetic, gaps, sizes."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from visfeedback.report.curves import training_curves
from visfeedback.report.grids import data_uri
from visfeedback.report.plots import Rate, curve, moving_mean, rates


def test_moving_mean_leaves_gaps_out():
    """Width 2 over 1, 3, NaN, 5: 1, (1+3)/2, 3 (its only neighbour), 5."""
    values = np.array([1.0, 3.0, math.nan, 5.0])
    assert moving_mean(values, 2).tolist() == pytest.approx([1, 2, 3, 5])


def test_moving_mean_of_only_gaps_is_a_gap():
    assert np.isnan(moving_mean(np.full(3, math.nan), 2)).all()


def test_curve_survives_values_that_are_not_finite():
    figure = curve("loss", "Loss", [1, 2, 3], [math.inf, math.nan, 0.5])
    assert "from 0.5 to 0.5" in figure.svg
    assert "no values" in curve("nan", "Loss", [1, 2], [math.nan, math.nan]).svg


def test_names_are_text_not_formulas():
    """`$\\bad$` would be TeX that matplotlib cannot read."""
    figure = rates("r", "Right", {r"$\bad$": {"base": Rate(0.5, 0.4, 0.6)}, "a_b $5": {"tuned": Rate(1, 0.9, 1)}})
    assert r"$\bad$" in figure.svg and "a b $5" in figure.svg


def test_only_metrics_with_two_values_are_drawn():
    rows = [{"step": 1, "loss": 0.7, "drift": 0.0}, {"step": 2, "loss": 0.6}]
    assert [figure.title for figure in training_curves(rows).items] == ["Loss"]
    assert training_curves([]).items == ()


def test_chance_is_drawn_where_pairs_are_ranked() -> None:
    """ln 2 is what a loss over pairs begins with; another loss has no such line."""
    alone = [{"step": step, "loss": 1.0} for step in (1, 2)]
    pairs = [row | {"implicit_accuracy": 0.5} for row in alone]
    assert "ln 2" in training_curves(pairs).items[0].caption
    assert "ln 2" not in training_curves(alone).items[0].caption


def _decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_small_images_are_kept_pixel_for_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    uri = data_uri(Image.fromarray(pixels))
    assert uri.startswith("data:image/png")
    assert (np.array(_decode(uri)) == pixels).all()


def test_large_images_shrink():
    image = Image.new("RGB", (1024, 512), "teal")
    uri = data_uri(image)
    assert uri.startswith("data:image/jpeg")
    assert _decode(uri).size == (384, 192)
    assert image.size == (1024, 512), "the image handed in stays as it is"
