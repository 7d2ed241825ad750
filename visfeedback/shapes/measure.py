"""Measure the verifier on fresh renders: ``python -m visfeedback.shapes.measure --n 5000``.

Half of the pictures are held against the prompt they were drawn from, half against that prompt changed in one word. The
truth is the same check made on the scene itself. A false positive is an aspect called right that is wrong in the scene.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from visfeedback.shapes import grammar
from visfeedback.shapes.renderer import draw_scene, render
from visfeedback.shapes.verify import ASPECTS, check, detect, sight_of


@dataclass
class Counts:
    """How often the verifier agreed with the scene, for one aspect or category."""

    right: int = 0
    missed: int = 0  # right in the scene, called wrong: false negative
    wrong: int = 0
    fooled: int = 0  # wrong in the scene, called right: false positive

    def add(self, truth: bool, said: bool) -> None:
        if truth:
            self.right += 1
            self.missed += not said
        else:
            self.wrong += 1
            self.fooled += said

    @property
    def false_negatives(self) -> float:
        return self.missed / max(self.right, 1)

    @property
    def false_positives(self) -> float:
        return self.fooled / max(self.wrong, 1)


def measure(n: int, seed: int = 0) -> dict[tuple[str, str], Counts]:
    """Counts by ("aspect", name) and ("category", name: everything right), over both splits of the prompts."""
    rng = np.random.default_rng([seed, 5000])
    counts: dict[tuple[str, str], Counts] = defaultdict(Counts)
    for i in range(n):
        choices = grammar.specs(grammar.CATEGORIES[i % len(grammar.CATEGORIES)])
        spec = choices[rng.integers(len(choices))]
        text = grammar.write(spec, str(rng.choice(grammar.PREFIXES)))
        scene = draw_scene(spec, rng)
        asked = grammar.read(grammar.change_one_word(text, rng) if i % 2 else text)
        truth, said = check(asked, sight_of(scene)), check(asked, detect(render(scene)))
        for aspect, value in truth.aspects.items():
            counts["aspect", aspect].add(value, said.aspects[aspect])
        counts["category", spec.category].add(truth.right, said.right)
    return dict(counts)


def table(counts: dict[tuple[str, str], Counts]) -> str:
    """Markdown, a row an aspect and a row a category."""
    rows = ["| | | false negatives | of | false positives | of |", "|---|---|---|---|---|---|"]
    known = [("aspect", name) for name in ASPECTS] + [("category", name) for name in grammar.CATEGORIES]
    for kind, name in known:
        c = counts.get((kind, name), Counts())
        rows.append(f"| {kind} | {name} | {c.false_negatives:.2%} | {c.right} | {c.false_positives:.2%} | {c.wrong} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.stdout.write(table(measure(args.n, args.seed)) + "\n")


if __name__ == "__main__":
    main()
