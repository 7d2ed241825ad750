"""Rewards fitted to comparisons: the mathematics by hand, what is learned and measured, and folders that come back."""

from __future__ import annotations

import json
import math
import runpy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from visfeedback import rewards, shapes
from visfeedback.evaluation import statistics
from visfeedback.plugins import InputError
from visfeedback.rewards import _fit_data, _fit_models, fit
from visfeedback.rewards._preference_math import accuracy, bradley_terry, calibration_error, davidson, temperature
from visfeedback.rewards.fit import Comparison, Settings
from visfeedback.shapes.grammar import change_one_word, read
from visfeedback.shapes.renderer import draw_scene, render_image
from visfeedback.shapes.simulated import Person

ONES = torch.ones(3)


# the mathematics


def test_bradley_terry_by_hand():
    """At gap 0 the loss is ln 2 for any label; at gap 1 and label 1 it is ln(1 + 1/e); weights make a weighted mean."""
    zero = torch.zeros(3)
    assert bradley_terry(zero, torch.tensor([0.0, 0.5, 1.0]), ONES).item() == pytest.approx(math.log(2))
    gap, share = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.e)
    found = bradley_terry(gap, share, torch.tensor([3.0, 1.0]))
    assert found.item() == pytest.approx((3 * right + wrong) / 4)


@pytest.mark.parametrize("share", [0.5, 0.6, 0.9])
def test_a_soft_label_is_met_where_its_own_odds_are(share):
    """The derivative s(gap) - share is 0 at gap = ln(share / (1 - share)): at 0 for a tie."""
    gap = torch.tensor([math.log(share / (1 - share))], requires_grad=True)
    bradley_terry(gap, torch.tensor([share]), torch.ones(1)).backward()
    assert gap.grad.item() == pytest.approx(0, abs=1e-6)


def test_davidson_by_hand():
    """At gap 0 and v = 1 all three outcomes have probability 1/3; with v = 0 wins are those of Bradley-Terry.

    A share of .7 is .4 of a win and .6 of a tie: at gap 2 and v = 1 with D = e + 1/e + 1, .4 (ln D - 1) + .6 ln D.
    """
    zero, one = torch.zeros(3), torch.tensor(0.0)
    assert davidson(zero, torch.tensor([1.0, 0.0, 0.5]), ONES, one).item() == pytest.approx(math.log(3))
    gap, share = torch.tensor([0.7, -1.3, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    never = davidson(gap, share, ONES, torch.tensor(-40.0))
    assert never.item() == pytest.approx(bradley_terry(gap, share, ONES).item(), abs=1e-6)
    soft = davidson(torch.tensor([2.0]), torch.tensor([0.7]), torch.ones(1), one)
    assert soft.item() == pytest.approx(math.log(math.e + 1 / math.e + 1) - 0.4, abs=1e-6)


def test_davidson_learns_how_often_there_are_ties():
    """With all gaps 0 and 6 ties in 10 the best v has v / (2 + v) = 0.6, v = 3."""
    share = torch.tensor([0.5] * 6 + [1.0, 0.0, 1.0, 0.0])
    log_tie = torch.tensor(math.log(3.0), requires_grad=True)
    davidson(torch.zeros(10), share, torch.ones(10), log_tie).backward()
    assert log_tie.grad.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("hot", [0.01, 0.5, 3.0, 400.0])
def test_the_temperature_is_found(hot):
    """Shares that are s(gap / T) exactly are met best by T."""
    gap = torch.linspace(-3, 3, 13) * hot
    assert temperature(gap, torch.sigmoid(gap / hot), torch.ones(13)) == pytest.approx(hot, rel=1e-4)


def test_the_temperature_has_bounds():
    """Never wrong asks for 0, always wrong for infinity."""
    gap = torch.tensor([1.0, -2.0, 0.5])
    right = (gap > 0).float()
    assert temperature(gap, right, ONES) == pytest.approx(1e-4, rel=1e-3)
    assert temperature(gap, 1 - right, ONES) == pytest.approx(1e4, rel=1e-3)


def test_accuracy_leaves_ties_out_and_halves_indifference():
    """Right, wrong, indifferent, a tie: (1 + 0 + 1/2) / 3."""
    gap, share = torch.tensor([1.0, 1.0, 0.0, 5.0]), torch.tensor([0.9, 0.0, 1.0, 0.5])
    found = accuracy(gap, share, ["a", "b", "c", "d"])
    assert found is not None
    assert (found.value, found.count) == (0.5, 3)
    assert accuracy(gap[3:], share[3:], ["d"]) is None


def test_the_interval_knows_that_comparisons_of_a_prompt_hang_together():
    """The same formula as for images of a prompt; ten copies of each comparison must not make it ten times surer."""
    generator = torch.Generator().manual_seed(0)
    gap, share = torch.randn(40, generator=generator), torch.ones(40)
    prompts = [str(n // 4) for n in range(40)]
    found = accuracy(gap, share, prompts)
    expected = statistics.rate((gap > 0).numpy().astype(float), prompts)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    alone = accuracy(gap[:12], share[:12], [str(n) for n in range(12)])
    copies = accuracy(gap[:12].repeat(10), share[:12].repeat(10), [str(n % 12) for n in range(120)])
    assert alone is not None and copies is not None
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high), abs=0.02)


def test_calibration_error_by_hand():
    """Two comparisons at confidence 0.75, one right: |0.75 - 0.5|. Soft labels count with their share."""
    gap = torch.tensor([math.log(3), -math.log(3)])
    assert calibration_error(gap, torch.tensor([1.0, 1.0])) == pytest.approx(0.25)
    assert calibration_error(gap, torch.tensor([0.75, 0.25])) == pytest.approx(0.0, abs=1e-6)


# the data


def _comparison(prompt: str, a: str, b: str, share: float = 1.0, weight: float = 1.0) -> Comparison:
    return Comparison(prompt, Path(a), Path(b), share, weight)


def test_a_table_names_images_prompts_and_items_once():
    data, dropped = _fit_data.table(
        [_comparison("x", "1", "2"), _comparison("x", "2", "3", 0.5), _comparison("y", "1", "3", 0.0),
         _comparison("y", "3", "3"), _comparison("y", "1", "2", 1, 0)],
        "soft",
    )  # fmt: skip
    assert [p.name for p in data.images] == ["1", "2", "3"]
    assert data.items == [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1)]
    assert (data.pairs.a.tolist(), data.pairs.b.tolist()) == ([0, 1, 3], [1, 2, 4])
    assert dropped == {"same image": 1, "without weight": 1}


def test_ties_may_be_dropped_and_alone_teach_nothing():
    rows = [_comparison("x", "1", "2", 0.5), _comparison("x", "1", "3")]
    data, dropped = _fit_data.table(rows, "drop")
    assert (len(data.comparisons), dropped) == (1, {"tie": 1})
    for ties in ("soft", "drop"):
        with pytest.raises(InputError, match="nothing to learn from"):
            _fit_data.table(rows[:1], ties)


def test_the_split_is_by_prompt_and_by_the_prompts_text_alone():
    rows = [_comparison(f"prompt {n % 20}", str(n), str(n + 1)) for n in range(60)]
    data = _fit_data.table(rows, "soft")[0]
    parts = _fit_data.split(data, torch.arange(60), 0.2, 0.2, seed=0)
    sets = [{data.prompts[n] for n in data.pairs.prompt[part].tolist()} for part in parts]
    assert [len(one) for one in sets] == [12, 4, 4]
    assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]
    assert sorted(torch.cat(list(parts)).tolist()) == list(range(60))
    turned = _fit_data.table(rows[::-1], "soft")[0]
    again = _fit_data.split(turned, torch.arange(60), 0.2, 0.2, seed=0)
    assert [{turned.prompts[n] for n in turned.pairs.prompt[part].tolist()} for part in again] == sets
    other = _fit_data.split(data, torch.arange(60), 0.2, 0.2, seed=1)
    assert other.test.tolist() != parts.test.tolist()


def test_too_few_prompts_or_only_ties_to_learn_from():
    rows = [_comparison("x", "1", "2"), _comparison("y", "1", "2")]
    data = _fit_data.table(rows, "soft")[0]
    with pytest.raises(InputError, match="2 prompts; a fit needs at least 3"):
        _fit_data.split(data, torch.arange(2), 0.2, 0.2, seed=0)
    rows = [_comparison(f"{n}", "1", "2", 0.5) for n in range(20)] + [_comparison("decided", "1", "2")]
    data = _fit_data.table(rows, "soft")[0]
    seeds = range(30)
    said = []
    for seed in seeds:
        try:
            _fit_data.split(data, torch.arange(21), 0.4, 0.4, seed)
        except InputError as error:
            said.append(str(error))
    assert 0 < len(said) < len(seeds)
    assert set(said) == {"all comparisons to learn from are ties; collect more, or try another --seed"}


# fits of a tiny reward


WORDS = ("red", "blue", "green")
KINDS = ("circle", "square", "star")


def _paint(folder: Path, prompts: int = 18, images: int = 5) -> list[Comparison]:
    """Noise of some brightness and hue: the brighter one is preferred, whatever the prompt; close ones are ties."""
    random = np.random.default_rng(0)
    texts = [f"a {word} {kind} {tail}" for word in WORDS for kind in KINDS for tail in ("", "left")][:prompts]
    found: list[Comparison] = []
    for p, text in enumerate(texts):
        bright = random.uniform(40, 215, images)
        paths = [folder / f"{p}-{k}.png" for k in range(images)]
        for path, level in zip(paths, bright, strict=True):
            pixels = level + random.uniform(-40, 40, 3) + random.normal(0, 15, (32, 32, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
        for a, b in combinations(range(images), 2):
            gap = bright[a] - bright[b]
            found.append(Comparison(text, paths[a], paths[b], 0.5 if abs(gap) < 12 else float(gap > 0)))
    return found


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory) -> list[Comparison]:
    return _paint(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def quick(tiny_clip) -> Settings:
    return Settings(base=f"shapes_clip@{tiny_clip}", lr=0.02, l2=0.01, epochs=30)


@pytest.fixture(scope="module")
def fitted(comparisons, quick, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("fits") / "head"
    return out, fit.fit(comparisons, quick, out, command="visfeedback rewards fit")


def _pixels(comparisons: list[Comparison], count: int) -> tuple[list[Image.Image], list[str]]:
    chosen = {c.image_a: c.prompt for c in comparisons}
    return [Image.open(path).convert("RGB") for path in list(chosen)[:count]], list(chosen.values())[:count]


def test_a_head_learns_what_the_base_does_not_know(fitted, comparisons):
    """The random base is near chance on brightness; a linear head on its features is far above."""
    out, summary = fitted
    assert summary["accuracy"]["value"] > 0.75
    assert summary["accuracy"]["low"] > 0.55
    assert summary["accuracy"]["value"] > summary["base_accuracy"]["value"]
    assert summary["nll"]["after"] < summary["nll"]["base"]
    assert summary["prompts"] == {"train": 10, "validation": 4, "test": 4}
    assert summary["comparisons"] == {"train": 100, "validation": 40, "test": 40}, "5 images, 10 pairs a prompt"
    assert not (out / ".fit").exists()


def test_the_folder_says_what_was_measured(fitted):
    out, summary = fitted
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    card = (out / "card.md").read_text()
    assert f"{100 * summary['accuracy']['value']:.1f}%" in card
    assert f"| {summary['accuracy']['count']} |" in card
    assert "no prompt is in two of them" in card


def test_it_loads_again_and_keeps_the_accuracy_it_claims(fitted, comparisons, quick):
    """Scores of the loaded reward, compared pair by pair on the held-out prompts, give the summary's accuracy."""
    out, summary = fitted
    reward = rewards.load(f"fit@{out}")
    assert reward.origin.model == str(out)
    data = _fit_data.table(comparisons, "soft")[0]
    test = _fit_data.split(data, torch.arange(len(comparisons)), quick.validation, quick.test, quick.seed).test
    rows = [comparisons[n] for n in test.tolist() if comparisons[n].share != 0.5]
    texts = [row.prompt for row in rows]
    a, b = ([Image.open(getattr(row, side)) for row in rows] for side in ("image_a", "image_b"))
    gap = rewards.score(reward, a, texts) - rewards.score(reward, b, texts)
    right = [(g > 0) == (row.share > 0.5) for g, row in zip(gap.tolist(), rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(summary["accuracy"]["value"])
    base = rewards.load(quick.base)
    assert (reward.encoder, reward.preprocessing) == (base.encoder, base.preprocessing), "features are shared"


def test_a_fitted_head_keeps_the_laws_of_a_reward(fitted, comparisons):
    reward = rewards.load(f"fit@{fitted[0]}")
    images, prompts = _pixels(comparisons, 5)
    paired = rewards.score(reward, images, prompts)
    matrix = rewards.score(reward, images, prompts, "matrix")
    assert torch.allclose(paired, matrix.diagonal(), atol=1e-5)
    singles = torch.cat([rewards.score(reward, [i], [p]) for i, p in zip(images, prompts, strict=True)])
    assert torch.allclose(paired, singles, atol=1e-5)
    features = reward.encode_images(torch.stack([reward.preprocess(image) for image in images]))
    assert reward.combine(features, torch.empty(0, 16), "matrix").shape == (5, 0)
    unit = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1).float() / 255 for i in images])
    unit.requires_grad_(True)
    scores = reward.from_pixels(unit, prompts)
    assert torch.allclose(scores, paired, atol=1e-4)
    scores.sum().backward()
    assert unit.grad.abs().sum() > 0


def test_a_large_matrix_is_computed_in_pieces(fitted, comparisons, monkeypatch):
    from visfeedback.rewards import _fitted

    reward = rewards.load(f"fit@{fitted[0]}")
    images, prompts = _pixels(comparisons, 5)
    whole = rewards.score(reward, images, prompts, "matrix")
    monkeypatch.setattr(_fitted, "FLOATS", 500)  # 3 x 16 x 5 = 240 for an image: two at a time
    assert torch.allclose(rewards.score(reward, images, prompts, "matrix"), whole, atol=1e-6)


def test_before_it_learns_a_fit_is_its_base(comparisons, quick, tmp_path):
    """A step of almost nothing leaves the base: the same accuracy, and scores that are a line through its own."""
    still = quick.model_copy(update={"l2": 1e6, "lr": 1e-9, "epochs": 1})
    summary = fit.fit(comparisons, still, tmp_path / "out")
    assert summary["accuracy"]["value"] == summary["base_accuracy"]["value"]
    images, prompts = _pixels(comparisons, 6)
    own = rewards.score(rewards.load(f"fit@{tmp_path / 'out'}"), images, prompts)
    base = rewards.score(rewards.load(quick.base), images, prompts)
    slope = (own - own.mean()) @ (base - base.mean()) / (base - base.mean()).square().sum()
    assert torch.allclose(own - own.mean(), slope * (base - base.mean()), atol=1e-4)


def test_a_hidden_layer(comparisons, quick, tmp_path):
    summary = fit.fit(comparisons, quick.model_copy(update={"hidden": 8}), tmp_path / "out")
    assert summary["accuracy"]["value"] > 0.7
    head = load_file(tmp_path / "out" / "weights.safetensors")
    assert head["body.0.weight"].shape == (8, 48)
    images, prompts = _pixels(comparisons, 3)
    reward = rewards.load(f"fit@{tmp_path / 'out'}")
    matrix = rewards.score(reward, images, prompts, "matrix")
    assert torch.allclose(rewards.score(reward, images, prompts), matrix.diagonal(), atol=1e-5)


@pytest.mark.parametrize("ties", ["davidson", "drop"])
def test_other_ways_with_ties(comparisons, quick, tmp_path, ties):
    summary = fit.fit(comparisons, quick.model_copy(update={"ties": ties}), tmp_path / "out")
    count = sum(c.share == 0.5 for c in comparisons)
    assert count > 3
    assert summary["left_out"] == ({"tie": count} if ties == "drop" else {})
    assert (summary["log_tie"] is not None) == (ties == "davidson")
    assert summary["accuracy"]["value"] > 0.7


class Interrupted(Exception):
    pass


def _stop_after(epochs: int) -> Callable:
    """A progress that is interrupted like a user would, after so many epochs."""

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
        done = [0]

        def advance(count: int) -> None:
            done[0] += count
            if description == "fitting" and done[0] >= epochs:
                raise Interrupted

        yield advance

    return progress


@pytest.mark.parametrize("change", [{"hidden": 4, "ties": "davidson"}, {"train": "network", "lr": 1e-3, "epochs": 4}])
def test_an_interrupted_fit_goes_on_bit_for_bit(comparisons, quick, tmp_path, change):
    """Stopped after 2 and again after 3 epochs, the weights are those of a fit that never stopped."""
    settings = quick.model_copy(update={"patience": 30, **change})
    whole = fit.fit(comparisons, settings, tmp_path / "whole")
    for epochs in (2, 3):
        with pytest.raises(Interrupted):
            fit.fit(comparisons, settings, tmp_path / "parts", progress=_stop_after(epochs))
    opened: list[Path] = []

    def opener(path: Path) -> Image.Image:
        opened.append(path)
        return _fit_data.open_image(path)

    parts = fit.fit(comparisons, settings, tmp_path / "parts", opener)
    assert (tmp_path / "parts" / "weights.safetensors").read_bytes() == (
        tmp_path / "whole" / "weights.safetensors"
    ).read_bytes()
    assert parts["history"] == whole["history"]
    assert parts["accuracy"] == whole["accuracy"]
    if settings.train == "head":
        assert opened == [], "images were encoded before the interrupt and are not opened again"


def test_a_finished_fit_is_not_done_again(fitted, comparisons, quick):
    out, summary = fitted
    before = (out / "weights.safetensors").stat().st_mtime_ns
    assert fit.fit(comparisons, quick, out) == json.loads(json.dumps(summary))
    assert (out / "weights.safetensors").stat().st_mtime_ns == before


def test_a_folder_of_something_else_is_left_alone(fitted, comparisons, quick, tmp_path):
    with pytest.raises(InputError, match="other comparisons or settings"):
        fit.fit(comparisons, quick.model_copy(update={"seed": 5}), fitted[0])
    with pytest.raises(InputError, match="other comparisons or settings"):
        fit.fit(comparisons[:-1], quick, fitted[0])
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="holds no fit"):
        fit.fit(comparisons, quick, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(Interrupted):
        fit.fit(comparisons, quick, tmp_path / "begun", progress=_stop_after(1))
    with pytest.raises(InputError, match="other comparisons or settings"):
        fit.fit(comparisons, quick.model_copy(update={"l2": 0.5}), tmp_path / "begun")


def test_images_that_cannot_be_read_are_listed_and_left_out(comparisons, quick, tmp_path):
    """One truncated, one empty, one a text: three lines, and their comparisons are gone, the others learned."""
    folder = tmp_path / "pictures"
    shutil.copytree(comparisons[0].image_a.parent, folder)
    moved = [c._replace(image_a=folder / c.image_a.name, image_b=folder / c.image_b.name) for c in comparisons]
    bad = [folder / name for name in ("0-1.png", "3-0.png", "9-2.png")]
    bad[0].write_bytes(bad[0].read_bytes()[:200])
    bad[1].write_bytes(b"")
    bad[2].write_text("no image")
    summary = fit.fit(moved, quick, tmp_path / "out")
    assert len(summary["failed"]) == 3
    assert all(any(str(path) in line and "\n" not in line for line in summary["failed"]) for path in bad)
    gone = sum(c.image_a in bad or c.image_b in bad for c in moved)
    assert summary["left_out"] == {"with an unreadable image": gone}
    assert sum(summary["comparisons"].values()) == len(moved) - gone


def test_nothing_readable_is_one_line(quick, tmp_path):
    rows = [_comparison(f"{n}", str(tmp_path / "no.png"), str(tmp_path / "nor.png")) for n in range(4)]
    with pytest.raises(InputError, match="no comparison has two images that can be read") as error:
        fit.fit(rows, quick, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists(), "so that the next attempt finds the folder free"


def test_an_image_of_too_many_pixels(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    with pytest.raises(InputError, match="9000x9000"):
        _fit_data.open_image(tmp_path / "huge.png")


def test_a_reward_without_a_network_is_refused(comparisons, tmp_path):
    with pytest.raises(InputError, match="shapes_verifier has no network of its own"):
        fit.fit(comparisons, Settings(base="shapes_verifier"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_that_changed_is_refused(comparisons, quick, tiny_clip, tmp_path):
    base = tmp_path / "clip"
    shutil.copytree(tiny_clip, base)
    fit.fit(comparisons, quick.model_copy(update={"base": f"shapes_clip@{base}", "epochs": 1}), tmp_path / "out")
    rewards.load(f"fit@{tmp_path / 'out'}")
    weights = load_file(base / "open_clip_model.safetensors")
    weights["visual.proj"] *= 2
    save_file(weights, base / "open_clip_model.safetensors")
    with pytest.raises(InputError, match="was fitted on another checkpoint of shapes_clip@"):
        rewards.load(f"fit@{tmp_path / 'out'}")


def test_damaged_folders_are_one_line(fitted, tmp_path):
    good = load_file(fitted[0] / "weights.safetensors")
    cases: list[tuple[str, Callable[[Path], object], str]] = [
        ("gone", lambda f: (f / "weights.safetensors").unlink(), "no weights.safetensors"),
        ("cut", lambda f: (f / "weights.safetensors").write_bytes(b"12345"), "weights.safetensors"),
        ("nan", lambda f: save_file({**good, "scale": torch.tensor(math.nan)}, f / "weights.safetensors"), "scale"),
        ("shape", lambda f: save_file({**good, "mean": torch.zeros(3)}, f / "weights.safetensors"), "mean is 3"),
        ("less", lambda f: save_file({k: v for k, v in good.items() if k != "std"}, f / "weights.safetensors"), "std"),
        ("json", lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
        ("kind", lambda f: (f / "config.json").write_text('{"kind": "tree"}'), "kind"),
    ]  # fmt: skip
    for name, harm, words in cases:
        folder = tmp_path / name
        shutil.copytree(fitted[0], folder)
        harm(folder)
        with pytest.raises(InputError, match=words) as error:
            rewards.load(f"fit@{folder}")
        assert "\n" not in str(error.value), name
    for reference in ("fit", "fit:v1", f"fit@{tmp_path}/nothing"):
        with pytest.raises(InputError):
            rewards.load(reference)


# the base's own network


def test_the_upper_part_of_two_towers():
    """4 vision and 3 text layers with 0.5 frozen: 2 of 4, and 2 (1.5, rounded to even) of 3, stay."""
    network = rewards.load("shapes_clip").network
    names = set(_fit_models.upper_part(network, 0.5))
    towers = {"visual.transformer": {"2", "3"}, "transformer": {"2"}}
    for tower, expected in towers.items():
        prefix = f"{tower}.resblocks."
        assert {name.removeprefix(prefix)[0] for name in names if name.startswith(prefix)} == expected
    assert {"text_projection", "visual.proj", "visual.ln_post.weight", "ln_final.weight"} <= names
    assert not any("embed" in name or "conv1" in name or "ln_pre" in name for name in names)
    assert set(_fit_models.upper_part(network, 0)) == {name for name, _ in network.named_parameters()}


def test_a_network_is_trained_and_comes_back(comparisons, quick, tiny_clip, tmp_path):
    """Its loss on what it learns from falls; only the upper part is stored; the base's file is untouched."""
    settings = quick.model_copy(update={"train": "network", "frozen": 1.0, "lr": 3e-3, "epochs": 12, "l2": 1e-4})
    before = (tiny_clip / "open_clip_model.safetensors").read_bytes()
    summary = fit.fit(comparisons, settings, tmp_path / "out")
    losses = [row["train"] for row in summary["history"][1:]]
    assert losses[-1] < losses[0] - 0.05
    assert summary["accuracy"]["value"] > summary["base_accuracy"]["value"]
    assert (tiny_clip / "open_clip_model.safetensors").read_bytes() == before
    stored = set(load_file(tmp_path / "out" / "weights.safetensors"))
    assert stored == {
        "text_projection", "visual.proj", "visual.ln_post.weight", "visual.ln_post.bias", "ln_final.weight",
        "ln_final.bias",
    }  # fmt: skip
    reward, base = rewards.load(f"fit@{tmp_path / 'out'}"), rewards.load(settings.base)
    assert reward.encoder != base.encoder
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "scale": 2 * config["scale"]}))
    twice = rewards.load(f"fit@{tmp_path / 'out'}")
    assert twice.origin.checkpoint_sha256 != reward.origin.checkpoint_sha256, "scores are twice as large"
    images, prompts = _pixels(comparisons, 5)
    matrix = rewards.score(reward, images, prompts, "matrix")
    assert torch.allclose(rewards.score(reward, images, prompts), matrix.diagonal(), atol=1e-5)
    assert not any(p.requires_grad for p in base.network.parameters())
    unit = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1).float() / 255 for i in images])
    unit.requires_grad_(True)
    reward.from_pixels(unit, prompts).sum().backward()
    assert unit.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["head", "network"])
def test_on_imagereward(comparisons, tmp_path, kind):
    """The same for BLIP: a head on its first image token, or its own head and last layers."""
    world = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures" / "blip_world.py")))
    base = f"imagereward@{world.write_folder(tmp_path / 'base')}"
    settings = Settings(base=base, train=kind, frozen=0.6, lr=0.02 if kind == "head" else 2e-3, l2=1e-3, epochs=6)
    chosen = [c for c in comparisons if int(c.image_a.name.partition("-")[0]) < 9]
    summary = fit.fit(chosen, settings, tmp_path / "out")
    losses = [row["train"] for row in summary["history"][1:]]
    assert losses[-1] < losses[0]
    reward = rewards.load(f"fit@{tmp_path / 'out'}")
    images, prompts = _pixels(comparisons, 3)
    matrix = rewards.score(reward, images, prompts, "matrix")
    assert torch.allclose(rewards.score(reward, images, prompts), matrix.diagonal(), atol=1e-5)
    if kind == "network":
        layers = {
            n.split("layer")[1].split(".")[1]
            for n in load_file(tmp_path / "out" / "weights.safetensors")
            if ".layer" in n
        }
        assert layers == {"1", "2"}, "vision layer 1 of 2, text layer 2 of 3"


# a hidden taste in the shapes world


def _tasteful(folder: Path, tastes: dict[str, float], prompts: int) -> list[Comparison]:
    """Renders, three in four of which fit their prompt, compared by a person who likes more than the prompt says."""
    person = Person(seed=1, tastes=tastes)
    found: list[Comparison] = []
    for p, prompt in enumerate(shapes.prompts(f"train:{prompts}")):
        shown: list[tuple[Path, Image.Image]] = []
        for k in range(4):
            rng = np.random.default_rng([p, k])
            text = prompt.text if rng.random() < 0.75 else change_one_word(prompt.text, rng)
            image = render_image(draw_scene(read(text), rng))
            path = folder / f"{p}-{k}.png"
            image.save(path)
            shown.append((path, image))
        for (path_a, a), (path_b, b) in combinations(shown, 2):
            choice, _ = person.choose(prompt, (a, b))
            found.append(Comparison(prompt.text, path_a, path_b, {"a": 1.0, "b": 0.0, "tie": 0.5}[choice]))
    return found


@pytest.mark.learning
def test_a_head_finds_a_taste_that_no_prompt_mentions(tmp_path):
    """120 prompts x 4 renders, 720 answers of a person with 5% slips who likes dark backgrounds more than the prompt.

    Held-out prompts: clearly above chance with the interval above one half, and above the CLIP alone, which only
    knows the prompt (measured for seeds 0, 1, 2: 81%, 80%, 82% against 54%, 60%, 49%, about 105 comparisons each).
    """
    rows = _tasteful(tmp_path, {"dark": 2.0}, 120)
    summary = fit.fit(rows, Settings(), tmp_path / "out")
    assert summary["accuracy"]["value"] > 0.7
    assert summary["accuracy"]["low"] > 0.6
    assert summary["accuracy"]["value"] > summary["base_accuracy"]["value"] + 0.1
    assert summary["nll"]["after"] < summary["nll"]["base"]
    reward = rewards.load(f"fit@{tmp_path / 'out'}")
    prompt = "a red circle"
    dark, light = (
        [
            render_image(draw_scene(read(f"{prompt} on a {ground} background"), np.random.default_rng(n)))
            for n in range(8)
        ]
        for ground in ("black", "white")
    )
    scores = [rewards.score(reward, images, [prompt] * 8).mean() for images in (dark, light)]
    assert scores[0] > scores[1]
