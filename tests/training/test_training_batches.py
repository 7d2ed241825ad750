"""The endless stream of batches, as a function of (seed, step)."""

from __future__ import annotations

import math

import pytest
import torch

from visfeedback.plugins import InputError
from visfeedback.training.batches import PairBatches, Recipe, Tables, draw_key, image_key
from visfeedback.training.cache import Live
from visfeedback.training.data import Pair


def pair(i: int) -> Pair:
    return Pair(id=f"p{i}", prompt=f"prompt {i % 2}", winner=f"w{i}", loser=f"l{i}", winner_path="", loser_path="",
                probability=0.5 + i / 20, weight=1.0 + i)  # fmt: skip


class Uniform:
    """A process's `sample_t`."""

    def sample_t(self, count, generator):
        return torch.rand(count, generator=generator)


def number(key: str) -> float:
    return float("".join(c for c in key if c.isdigit()))


MOMENTS = Live(lambda keys: {
    "mean": torch.stack([torch.full((2, 3, 3), number(k)) for k in keys]),
    "std": torch.zeros(len(keys), 2, 3, 3),
})  # fmt: skip
TEXT = Live(lambda keys: {"tokens": torch.tensor([[[float(len(k))]] for k in keys])})


def stream(count: int = 5, **recipe) -> PairBatches:
    tables = Tables(MOMENTS, TEXT)
    return PairBatches(
        [pair(i) for i in range(count)], tables, Uniform(), Recipe(**{"seed": 0, "batch_size": 2} | recipe)
    )  # type: ignore[arg-type]


def test_an_epoch_has_every_pair_once_in_its_own_order():
    batches = stream(7)
    epochs = [[batches.at(e * 7 + i)[0].id for i in range(7)] for e in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 7 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert stream(7, seed=1).at(0)[0].id != "" and [stream(7, seed=1).at(i)[0].id for i in range(7)] != epochs[0]


def test_the_stream_is_cut_alike_by_batches_accumulation_and_processes():
    """8 pairs a step: as 1 x 8, 4 micro batches of 2, or 2 processes of 2 x 2, the same pairs with the same noise."""

    def of(batches, micros, ranks):
        parts = [batches.batch(3, micro, rank) for micro in range(micros) for rank in range(ranks)]
        return (
            torch.cat([p.winner for p in parts]),
            torch.cat([p.noise for p in parts]),
            torch.cat([p.t for p in parts]),
        )

    whole = of(stream(batch_size=8), 1, 1)
    for recipe, micros, ranks in (({"accumulate": 4}, 4, 1), ({"accumulate": 2, "processes": 2}, 2, 2)):
        for a, b in zip(whole, of(stream(**recipe), micros, ranks), strict=True):
            assert torch.equal(a, b)


def test_a_draw_belongs_to_the_pair_and_repeats_after_draws():
    """With 2 draws epoch 0 and 2 show the same noise for each pair, epoch 1 another; with 0 draws it never repeats."""

    def noise(batches, epoch):
        found = {}
        for i in range(5):
            item = batches.at(epoch * 5 + i)
            found[item[0].id] = batches.collate([item]).noise
        return found

    two, fresh = stream(draws=2), stream()
    for name, value in noise(two, 0).items():
        assert torch.equal(value, noise(two, 2)[name]) and not torch.equal(value, noise(two, 1)[name])
        assert torch.equal(value, noise(fresh, 0)[name]) and not torch.equal(value, noise(fresh, 2)[name])


def test_a_batch_brings_everything_of_its_pairs():
    batches = stream()
    items = [(pair(3), 0), (pair(1), 4)]
    batch = batches.collate(items)
    assert batch.winner[:, 0, 0, 0].tolist() == [3, 1] and batch.loser[:, 0, 0, 0].tolist() == [3, 1]
    assert batch.probability.tolist() == pytest.approx([0.65, 0.55]) and batch.weight.tolist() == [4, 2]
    assert batch.condition.tokens.flatten().tolist() == [8, 8] and batch.reference_errors is None
    assert batch.noise.shape == (2, 2, 3, 3) and batch.t.shape == (2,)


def test_latents_are_sampled_from_the_moments():
    """mean 0, std 2: over many draws winner and loser have that deviation and are independent of each other."""
    moments = Live(lambda keys: {"mean": torch.zeros(len(keys), 2, 3, 3), "std": torch.full((len(keys), 2, 3, 3), 2.0)})
    batches = PairBatches([pair(0)], Tables(moments, TEXT), Uniform(), Recipe(0, 2))  # type: ignore[arg-type]
    batch = batches.collate([(pair(0), d) for d in range(400)])
    assert batch.winner.std().item() == pytest.approx(2, rel=0.05)
    correlation = torch.corrcoef(torch.stack([batch.winner.flatten(), batch.loser.flatten()]))[0, 1]
    assert abs(correlation.item()) < 0.05  # 7200 pairs of numbers: standard error .012


def test_prompts_are_dropped_as_often_as_asked():
    batches = stream(prompt_drop=0.3)
    lengths = batches.collate([(pair(0), d) for d in range(600)]).condition.tokens.flatten()
    share = (lengths == 0).float().mean().item()
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 600))


def test_mirroring_takes_winner_and_loser_together():
    asked: list[str] = []

    def compute(keys):
        asked.extend(keys)
        return {"mean": torch.zeros(len(keys), 2, 3, 3), "std": torch.zeros(len(keys), 2, 3, 3)}

    batches = PairBatches([pair(0)], Tables(Live(compute), TEXT), Uniform(), Recipe(0, 2, flip=True))  # type: ignore[arg-type]
    for d in range(40):
        asked.clear()
        batches.collate([(pair(0), d)])
        assert asked in (["w0", "l0"], [image_key("w0", True), image_key("l0", True)])
    assert set(batches.shown(batches.items(40))[0]) == {"w0", "l0", image_key("w0", True), image_key("l0", True)}


def test_only_what_the_steps_reach_is_needed():
    """Law: the images and texts that 3 steps ask for are those that `shown` names for their items; more steps only add
    some at the end, so that what was computed for fewer stays what it is."""
    asked: tuple[list[str], list[str]] = ([], [])

    def moments(keys):
        asked[0].extend(keys)
        return {"mean": torch.zeros(len(keys), 2, 3, 3), "std": torch.zeros(len(keys), 2, 3, 3)}

    def text(keys):
        asked[1].extend(keys)
        return {"tokens": torch.zeros(len(keys), 1, 1)}

    recipe = Recipe(0, 2, flip=True, prompt_drop=0.5)
    batches = PairBatches([pair(i) for i in range(20)], Tables(Live(moments), Live(text)), Uniform(), recipe)  # type: ignore[arg-type]
    for step in range(3):
        batches.batch(step)
    images, texts = batches.shown(batches.items(3))
    assert set(images) == set(asked[0]) and set(texts) == set(asked[1]) and len(images) == 12
    more = batches.shown(batches.items(9))
    assert more[0][:12] == images and len(more[0]) == 36 and more[1][: len(texts)] == texts


def test_reference_rows_find_their_draw():
    batches = stream(draws=2)
    keys = [draw_key(*item) for item in batches.items(99)]
    assert sorted(keys) == sorted(draw_key(pair(i), d) for d in range(2) for i in range(5))
    errors = Live(lambda some: {"errors": torch.tensor([[float(keys.index(k)), 0.0] for k in some])})
    ready = PairBatches(batches.pairs, Tables(MOMENTS, TEXT, errors), Uniform(), batches.recipe)  # type: ignore[arg-type]
    for position in range(20):
        item = ready.at(position)
        batch = ready.collate([item])
        assert batch.reference_errors is not None
        assert batch.reference_errors[0, 0].item() == keys.index(draw_key(*item))
        again = ready.pairs_of([draw_key(*item)])
        assert torch.equal(again.noise, batch.noise) and torch.equal(again.t, batch.t)


def test_each_pair_and_draw_comes_once_until_draws_repeat():
    """5 pairs, 2 a step: 10 steps are 20 places. New draws in every epoch: 20 items; 3 draws: 15 of which some repeat;
    4 draws: 20, all used once. The first 2 are the first batch, and so on."""
    for draws, count, repeats in ((0, 20, False), (3, 15, True), (4, 20, False), (9, 20, False)):
        batches = stream(draws=draws)
        items = list(batches.items(10))
        assert len({draw_key(*item) for item in items}) == len(items) == count
        assert batches.repeats(10) is repeats
        assert items[4:6] == [batches.at(4), batches.at(5)]


# groups


def all_pairs(prompts: int = 3, images: int = 4, **recipe) -> PairBatches:
    """Every pair among the images of each prompt: 6 pairs of 4 images."""
    pairs = [
        Pair(id=f"{p}-{a}-{b}", prompt=f"prompt {p}", winner=f"{p}{a}", loser=f"{p}{b}", winner_path="", loser_path="")
        for p in range(prompts) for a in range(images) for b in range(a + 1, images)
    ]  # fmt: skip
    return PairBatches(
        pairs, Tables(MOMENTS, TEXT), Uniform(), Recipe(**{"seed": 0, "batch_size": 6, "group": True} | recipe)
    )  # type: ignore[arg-type]


def test_a_group_comes_together_and_shares_its_draw():
    batches = all_pairs()
    for step in range(3):
        items = [batches.at(step * 6 + i) for i in range(6)]
        assert len({pair.prompt for pair, _ in items}) == 1
        batch = batches.batch(step)
        assert all(torch.equal(batch.noise[0], noise) for noise in batch.noise) and len(set(batch.t.tolist())) == 1
    prompts = [[batches.at(e * 18 + 6 * i)[0].prompt for i in range(3)] for e in range(4)]
    assert all(sorted(epoch) == sorted(prompts[0]) for epoch in prompts) and len({tuple(p) for p in prompts}) > 1


def test_the_images_of_a_group_are_numbered_once():
    """6 pairs of 4 images: 12 places, 4 numbers; equal numbers have equal latents, also where the winner loses."""
    moments = Live(lambda keys: {
        "mean": torch.stack([torch.full((2, 3, 3), number(k)) for k in keys]), "std": torch.ones(len(keys), 2, 3, 3),
    })  # fmt: skip
    batches = all_pairs()
    batches = PairBatches(batches.pairs, Tables(moments, TEXT), Uniform(), batches.recipe)  # type: ignore[arg-type]
    batch = batches.batch(0)
    assert batch.same is not None and batch.same.shape == (6, 2) and len(batch.same.unique()) == 4
    images = torch.cat([batch.winner, batch.loser])
    numbers = batch.same.T.reshape(-1)
    for value in numbers.unique():
        group = images[numbers == value]
        assert all(torch.equal(group[0], image) for image in group)
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4


def test_without_groups_every_image_has_its_own_evaluation():
    assert all_pairs(group=False).batch(0).same is None


def test_times_come_from_the_wanted_part_alone():
    """Drawn again until they fit: all within, spread over the part, and the whole schedule is drawn as before."""
    times = torch.cat([stream(40, times=(0.4, 0.7)).batch(step).t for step in range(20)])
    assert 0.4 < times.min() < 0.45 and 0.65 < times.max() <= 0.7
    whole = stream(5).batch(0)
    assert torch.equal(whole.t, stream(5, times=(0.0, 1.0)).batch(0).t)


def test_a_part_that_the_process_never_draws_is_an_error():
    class Late:
        def sample_t(self, count, generator):
            return torch.full((count,), 0.9)

    batches = PairBatches([pair(0)], Tables(MOMENTS, TEXT), Late(), Recipe(0, 1, times=(0.0, 0.5)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="widen it"):
        batches.batch(0)
