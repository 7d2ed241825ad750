"""Results in words: headline and sentence, differences with their units, verdicts, what a judge can and cannot tell.

May import: types.
"""

from __future__ import annotations

from typing import Any

from visfeedback.evaluation.outcomes import Seen


def headline(summary: dict[str, Any]) -> str:
    """The result as a sentence that does not claim more than the interval allows."""
    delta, interval = summary["delta"], summary["delta_ci95"]
    if delta is None:
        return "Base and tuned model side by side"
    if interval is None:
        return f"One prompt cannot tell: {difference(summary, delta)}"
    low, high = interval
    if low <= 0 <= high:
        return f"No clear difference: {difference(summary, delta)}"
    if summary["delta_of"] != "accuracy":
        return f"{'Better' if delta > 0 else 'Worse'} by {difference(summary, abs(delta), signed=False)}"
    more = "more" if delta > 0 else "fewer"
    return f"{100 * abs(delta):.1f} points {more} images fully right"


def sentence(summary: dict[str, Any]) -> str:
    """The result for a terminal: what it was, what it is, and the interval of the difference."""
    if summary["delta"] is None:
        return headline(summary)
    sure = certainty(summary)
    base, tuned = summary["base"]["accuracy"], summary["tuned"]["accuracy"]
    if base is None:
        return f"{difference(summary, summary['delta'])}, {summary['delta_of']} ({sure})"
    images = summary["n_prompts"] * summary["images_per_prompt"]
    rates = f"{percent(base)} of images fully right became {percent(tuned)}"
    return f"{rates}: {difference(summary, summary['delta'])} ({sure}, {images} images a side)"


def difference(summary: dict[str, Any], value: float, signed: bool = True) -> str:
    """``value`` in the units of the summary's delta: points for shares, native units for rewards."""
    sign = "+" if signed else ""
    if summary["delta_of"].startswith("reward "):
        return minus(f"{value:{sign}.3g}")
    return minus(f"{100 * value:{sign}.1f}") + " points"


def minus(text: str) -> str:
    """A real minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def certainty(summary: dict[str, Any]) -> str:
    """How sure the difference is, without its unit."""
    if summary["delta_ci95"] is None:
        return "no interval from one prompt"
    low, high = (difference(summary, end).removesuffix(" points") for end in summary["delta_ci95"])
    return f"95% interval {low} to {high}"


def duration(seconds: float) -> str:
    """``95`` -> ``1 min 35 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def verdict(seen: Seen) -> str:
    """``right``, or ``wrong:`` and the aspects that do not hold; empty without a verifier."""
    if seen.right is None:
        return ""
    failed = ", ".join(name for name, holds in seen.aspects.items() if not holds)
    return "right" if seen.right else f"wrong: {failed}" if failed else "wrong"


def about(judge: str) -> str:
    """A sentence or two on what a judge of this kind can and cannot tell."""
    kind = judge.partition(":")[0]
    known = {
        "verifier": "It is a program that reads objects, colours, sizes and places from the pixels and compares them "
        "with the prompt. It has no taste: it cannot say whether a picture is beautiful, and it knows one small world.",
        "simulated": "It is a simulated person: a program with noise, ties and a taste of its own. Good for trying "
        "things out, no substitute for people.",
        "reward": "It is a reward model: a network trained on people's choices. Whoever optimises it finds its "
        "weak spots; believe it less the more the model was trained on it.",
        "vlm": "It is a vision-language model. It reads prompts well, miscounts, and may prefer the first image; "
        "sides were swapped by chance.",
        "human": "People judged, without knowing which picture came from which model.",
    }
    return known.get(kind, "")
