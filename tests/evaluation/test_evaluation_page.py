"""The page about a comparison: it claims no more than the interval, and shows pictures by chance."""

from __future__ import annotations

import pytest
from PIL import Image

from visfeedback.evaluation import page, words
from visfeedback.evaluation.outcomes import Outcome, Seen, summarise
from visfeedback.report.blocks import Cards
from visfeedback.report.page import render_page
from visfeedback.types.records import Frozen


class Knobs(Frozen):
    seed: int = 0


def _summary(delta: float, low: float, high: float, of: str = "accuracy") -> dict:
    return {"delta": delta, "delta_ci95": [low, high], "delta_of": of}


@pytest.mark.parametrize(("summary", "expected"), [
    (_summary(0.061, 0.032, 0.09), "6.1 points more images fully right"),
    (_summary(-0.05, -0.08, -0.02), "5.0 points fewer images fully right"),
    (_summary(0.01, -0.02, 0.04), "No clear difference: +1.0 points"),
    (_summary(0.25, 0.2, 0.3, "reward clip"), "Better by 0.25"),
    ({"delta": None, "delta_ci95": None, "delta_of": "win rate above one half"}, "Base and tuned model side by side"),
])  # fmt: skip
def test_headline_claims_no_more_than_the_interval(summary, expected):
    assert words.headline(summary) == expected


def test_one_prompt_claims_nothing(tmp_path):
    """Mended both times: no interval, no colour, no "more"."""
    summary = _summary(1.0, 0, 0) | {"delta_ci95": None}
    assert words.headline(summary) == "One prompt cannot tell: +100.0 points"
    sides = {"base": {"accuracy": 0.0}, "tuned": {"accuracy": 1.0}, "n_prompts": 1, "images_per_prompt": 2}
    assert words.sentence(summary | sides).endswith("+100.0 points (no interval from one prompt, 2 images a side)")
    outcomes = [o for o in _outcomes(tmp_path) if o.change == "mended"][:1]
    whole = _whole(outcomes)
    assert whole["delta_ci95"] is whole["win_rate_ci95"] is None
    found = {number.label: number for number in page.numbers(whole)}
    delta, win = found["Tuned minus base, accuracy"], found["Win rate against base"]
    assert delta.interval == win.interval == "no interval from one prompt"
    assert (delta.tone, delta.track, win.track) == ("plain", None, None)
    html = render_page(page.build(outcomes, whole, tmp_path, Knobs(), "visfeedback evaluate", "about"))
    assert "One prompt cannot tell" in html and "inf" not in html.replace("info", "")


def test_sentence_for_the_terminal():
    summary = _summary(0.061, 0.032, 0.09) | {
        "base": {"accuracy": 0.51}, "tuned": {"accuracy": 0.571}, "n_prompts": 256, "images_per_prompt": 2,
    }  # fmt: skip
    expected = "51.0% of images fully right became 57.1%: +6.1 points (95% interval +3.2 to +9.0, 512 images a side)"
    assert words.sentence(summary) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(0.4, "0 s"), (95, "1 min 35 s"), (7300, "2 h 1 min")])
def test_duration(seconds, expected):
    assert words.duration(seconds) == expected


def test_verdicts_in_words():
    wrong = Seen(sample_id="", path="", right=False, aspects={"count": False, "color": True, "shape": False})
    assert words.verdict(wrong) == "wrong: count, shape"
    assert words.verdict(wrong.model_copy(update={"right": True})) == "right"
    assert words.verdict(wrong.model_copy(update={"right": None})) == ""


def _outcomes(folder, verified: bool = True) -> list[Outcome]:
    """40 pairs of which 10 were mended, 10 broken, 10 stayed right and 10 wrong, in two categories."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(40):
        seen = {}
        for side, right in (("base", i % 4 in (1, 2)), ("tuned", i % 4 in (0, 2))):
            path = folder / f"{side}{i}.png"
            Image.new("RGB", (8, 8), (i * 6, 0, 0)).save(path)
            verdict = {"right": right, "aspects": {"count": right}} if verified else {}
            seen[side] = Seen(sample_id=str(path), path=path.name, measures={"render_distance": 0.1}, **verdict)
        rows.append(Outcome(prompt_id=str(i), prompt=f"prompt {i}", category="ab"[i % 2], win=0.5, **seen))
    return rows


def _whole(outcomes, seed: int = 0) -> dict:
    return summarise(outcomes, resamples=50) | {
        "command": "visfeedback evaluate --out here", "seed": seed, "seconds": 95.0, "peak_mib": 1024.0,
        "judge": "verifier:shapes", "n_prompts": 40, "images_per_prompt": 1, "drift": 0.01,
        "diversity": {"base": None, "tuned": None},
    }  # fmt: skip


def _cards(outcomes, folder, seed: int = 0) -> list[Cards]:
    sections = page.sections(outcomes, _whole(outcomes, seed), folder)
    found = next(section for section in sections if section.title == "Before and after")
    return [block for block in found.blocks if isinstance(block, Cards)]


def test_mended_and_broken_are_shown_alike_and_by_chance(tmp_path):
    outcomes = _outcomes(tmp_path)
    mended, broken, first, _second = _cards(outcomes, tmp_path)
    assert len(mended.cards) == len(broken.cards) == page.PER_CHANGE
    assert {card.tag for card in broken.cards} == {"broken"}
    assert "6 of 10" in broken.heading
    assert len(first.cards) == page.PER_CATEGORY
    assert _cards(outcomes, tmp_path) == _cards(outcomes, tmp_path)
    assert _cards(outcomes, tmp_path, seed=1) != _cards(outcomes, tmp_path)


def test_the_whole_page_holds_result_command_and_limits(tmp_path):
    outcomes = _outcomes(tmp_path)
    html = render_page(page.build(outcomes, _whole(outcomes), tmp_path, Knobs(), "visfeedback evaluate", "about"))
    for text in ("visfeedback evaluate --out here", "verifier:shapes", "10 pictures and broke 10", "1 min 35 s"):
        assert text in html


def test_the_page_says_whose_memory_was_measured(tmp_path):
    """Copies that drew beside are not in the number, so the page does not claim it for all of them."""
    outcomes = _outcomes(tmp_path)
    alone, beside = (
        render_page(page.build(outcomes, _whole(outcomes) | more, tmp_path, Knobs(), "visfeedback evaluate", "about"))
        for more in ({}, {"processes": 2})
    )
    assert "1.0 GiB at most" in alone and "in the first of" not in alone
    assert "1.0 GiB at most in the first of up to 2 processes" in beside


def test_a_page_without_a_verifier(tmp_path):
    outcomes = _outcomes(tmp_path, verified=False)
    html = render_page(page.build(outcomes, _whole(outcomes), tmp_path, Knobs(), "visfeedback evaluate", "about"))
    assert "What changed" not in html
    assert 'class="mark' not in html
    assert "Mended" not in html
