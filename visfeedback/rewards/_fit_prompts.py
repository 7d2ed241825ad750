"""Wrong prompts for an image: the right one with a word changed. Pure functions of texts.

Lee et al. 2023 ask the reward which of several prompts an image was made for; the others differ from the right one in
what they ask for. Here a word is replaced by one that stands between the same neighbours in other prompts: colours by
colours, numbers by numbers, without a list of words. May import: nothing of the package.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

START, END = "<", ">"


def perturbed(prompts: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """For each prompt up to ``count`` different others, those of one changed word first, then other prompts by chance.

    The same whatever order chance visits them in: each prompt has a random source of its own. Prompts that equal each
    other are one.
    """
    known = list(dict.fromkeys(prompts))
    between = _between(known)
    return [_others(prompt, known, between, count, seed) for prompt in prompts]


def _between(prompts: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """(word before, word after) -> the words seen between them, sorted."""
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for prompt in prompts:
        words = [START, *prompt.split(), END]
        for before, word, after in zip(words, words[1:], words[2:], strict=False):
            found[before, after].add(word)
    return {key: sorted(words) for key, words in found.items()}


def _others(
    prompt: str, known: Sequence[str], between: dict[tuple[str, str], list[str]], count: int, seed: int
) -> list[str]:
    words, source = prompt.split(), random.Random(f"{seed} {prompt}")
    padded = [START, *words, END]
    changed = [
        " ".join([*words[:i], other, *words[i + 1 :]])
        for i, word in enumerate(words)
        for other in between[padded[i], padded[i + 2]]
        if other != word
    ]
    source.shuffle(changed)
    picked = list(dict.fromkeys(changed))[:count]
    if len(picked) < count:
        rest = [other for other in known if other != prompt and other not in picked]
        picked += source.sample(rest, min(count - len(picked), len(rest)))
    return picked
