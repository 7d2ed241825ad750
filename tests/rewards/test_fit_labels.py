"""A reward from good and bad labels: what it learns, what the prompt classification adds, and the folder it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visfeedback import rewards
from visfeedback.plugins import InputError
from visfeedback.rewards._fit_label_learner import LabelLearner, Labelled, Labels, LabelSettings, auc
from visfeedback.rewards._fit_models import Survey
from visfeedback.rewards._fit_prompts import perturbed
from visfeedback.rewards.fit import fit_labels
from visfeedback.shapes import grammar
from visfeedback.shapes.renderer import draw_scene, render_image

QUICK = {"hidden": 64, "epochs": 12, "distractors": 4}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> list[Labelled]:
    """Renders of 100 prompts of colours and counts: one of the prompt (good), one of it with a word changed (bad)."""
    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    specs = [*grammar.split_specs("colors", "train")[:50], *grammar.split_specs("counting", "train")[:50]]
    rows = []
    for number, spec in enumerate(specs):
        text = grammar.write(spec)
        for good, shown in ((1.0, text), (0.0, grammar.change_one_word(text, rng))):
            path = folder / f"{number}-{good:g}.png"
            render_image(draw_scene(grammar.read(shown), rng)).save(path)
            rows.append(Labelled(text, path, good))
    return rows


def test_a_fit_loads_as_a_reward_and_reads_the_prompt(labelled, tmp_path):
    """On prompts that were not learned from a good image beats a bad one; scores lie in [0, 1]; the folder scores the
    same numbers as were measured."""
    summary = fit_labels(labelled, LabelSettings(hidden=256, epochs=60, lr=1e-3), tmp_path / "fit")
    assert summary["auc"] > 0.75, summary
    assert summary["labels"]["test"] == 40 and summary["prompts"]["test"] == 20
    reward = rewards.load(f"fit@{tmp_path / 'fit'}")
    assert reward.range == (0.0, 1.0) and reward.differentiable
    row = labelled[0]
    image = Image.open(row.image).convert("RGB")
    scores = rewards.score(reward, [image] * 2, [row.prompt, "a big cross at the top"])
    assert scores.min() >= 0 and scores.max() <= 1
    matrix = rewards.score(reward, [image], [row.prompt, "a big cross at the top"], "matrix")
    torch.testing.assert_close(matrix[0], scores)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    pixels.requires_grad_()
    reward.from_pixels(pixels, [row.prompt]).sum().backward()
    assert pixels.grad is not None and pixels.grad.any()
    assert "prompts that were not learned from" in (tmp_path / "fit" / "card.md").read_text()


def test_the_same_call_does_nothing_twice_and_another_is_refused(labelled, tmp_path):
    settings = LabelSettings(**QUICK | {"epochs": 1})
    first = fit_labels(labelled, settings, tmp_path / "fit")
    assert fit_labels(labelled, settings, tmp_path / "fit") == first
    with pytest.raises(InputError, match="holds a fit of other"):
        fit_labels(labelled, settings.model_copy(update={"auxiliary": 0.0}), tmp_path / "fit")


def learner(auxiliary: float, temperature: float = 0.1) -> LabelLearner:
    """Three images, of which two are good, prompts of one word, vectors that are random."""
    rows = tuple(Labelled(p, Path(p), g) for p, g in (("a", 1.0), ("b", 0.0), ("c", 1.0)))
    data = Labels(rows, (("b", "c"), ("a",), ("a", "b")))
    generator = torch.Generator().manual_seed(0)
    features, texts = torch.randn((2, 3, 8), generator=generator)
    found = Survey(features, torch.zeros(3), texts, {})
    return LabelLearner(data, found, LabelSettings(auxiliary=auxiliary, temperature=temperature, hidden=8, dropout=0.0))


def test_the_loss_is_squared_error_plus_prompt_classification_of_good_images():
    """Row by row: r of each image for each prompt, softmax over those asked, only for images 0 and 2."""
    made = learner(auxiliary=0.5)
    made.head.start(made._features(torch.arange(3), torch.arange(3)))
    with torch.no_grad():
        r = torch.stack([made._ask(torch.arange(3), torch.full((3, 1), p))[:, 0] for p in range(3)], dim=1)
        squared = ((1 - r[0, 0]) ** 2 + r[1, 1] ** 2 + (1 - r[2, 2]) ** 2) / 3
        right = [torch.log_softmax(r[0] / 0.1, 0)[0], torch.log_softmax(r[2] / 0.1, 0)[2]]
        expected = squared - 0.5 * sum(right) / 2
        torch.testing.assert_close(made.loss(torch.arange(3)), expected)
        torch.testing.assert_close(learner_like(made, 0.0).loss(torch.arange(3)), squared)


def learner_like(made: LabelLearner, auxiliary: float) -> LabelLearner:
    other = learner(auxiliary)
    other.head.load_state_dict(made.head.state_dict())
    return other


def test_a_prompt_with_fewer_perturbations_is_not_asked_for_more():
    """Image 1's prompt has one perturbation, the others two: its third place never counts."""
    made = learner(auxiliary=1.0)
    assert made._asked.tolist() == [[0, 1, 2], [1, 0, -1], [2, 0, 1]]
    made._good = torch.tensor([0.0, 1.0, 0.0])
    made.head.start(made._features(torch.arange(3), torch.arange(3)))
    with torch.no_grad():
        both = made._ask(torch.tensor([1]), torch.tensor([[1, 0]]))[0]
        expected = -torch.log_softmax(both / 0.1, 0)[0] + (1 - both[0]) ** 2
        torch.testing.assert_close(made.loss(torch.tensor([1])), expected)


def test_area_under_the_curve_counts_ties_half():
    """Good .9 .5, bad .5 .1: three wins and a tie of four: 3.5 / 4."""
    scores, good = torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([True, True, False, False])
    assert auc(scores, good) == 3.5 / 4
    assert auc(scores, torch.ones(4, dtype=torch.bool)) is None


def test_perturbations_change_one_word_for_one_seen_in_its_place():
    prompts = ["a red circle", "a blue circle", "two red circles", "a big green cross"]
    found = perturbed(prompts, 3, 0)
    assert found[0][0] == "a blue circle", "the only word seen between the same neighbours"
    assert all(prompt not in others for prompt, others in zip(prompts, found, strict=True))
    assert all(len(others) == 3 for others in found), "filled up with other prompts"
    again = perturbed(prompts[::-1], 3, 0)[::-1]
    assert again[0][0] == found[0][0]
    assert perturbed(["only one"], 3, 0) == [[]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [row._replace(good=1.0) for row in rows], r"all \d+ labels to learn from say 1;"),
        (lambda rows: rows[:4], r"labels of 2 prompts; a fit needs at least 3"),
        (
            lambda rows: [*rows[:-1], rows[-1]._replace(image=Path("gone.png"))],
            r"every labelled image must be readable",
        ),
    ],
)
def test_labels_that_teach_nothing_are_one_line_and_leave_no_folder(labelled, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as found:
        fit_labels(change(labelled), LabelSettings(**QUICK), tmp_path / "fit")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "fit").exists()


def test_a_base_without_vectors_for_prompts_is_refused(labelled, tmp_path):
    with pytest.raises(InputError, match="no network of its own"):
        fit_labels(labelled, LabelSettings(base="compressibility", **QUICK), tmp_path / "fit")
