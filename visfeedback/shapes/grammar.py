"""The prompts of this world: what they can say, how they are written, how they are read, and which are held out.

Categories follow GenEval (https://arxiv.org/abs/2310.11513) and T2I-CompBench (https://arxiv.org/abs/2307.06350).
A prompt is held out by its combination of words, whatever the phrase in front of it, so a held-out prompt asks for
something that no training caption ever said.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from numpy.random import Generator

from visfeedback.plugins import InputError
from visfeedback.shapes.scene import BACKGROUND_COLORS, OBJECT_COLORS, SHAPES
from visfeedback.types.records import Prompt

CATEGORIES = ("single_object", "colors", "two_objects", "counting", "spatial", "non_spatial", "background")
SPATIAL = ("left of", "right of", "above", "below")
COMPARISONS = ("bigger than", "smaller than")
SAME_COLOR = "the same color as"
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the center")
SIZES = ("small", "big")
NUMBERS = {"two": 2, "three": 3, "four": 4}
PREFIXES = ("", "a picture of ", "a drawing of ")
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}

HELDOUT_SHARE = 4  # one combination in this many is held out
PER_CATEGORY = {"train": 256, "heldout": 72}  # most prompts a category may have in a list


@dataclass(frozen=True)
class Item:
    """Objects of one kind; None leaves it open."""

    shape: str
    color: str | None = None
    size: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Spec:
    """What a prompt asks for. A relation holds between the first and the second item."""

    category: str
    items: tuple[Item, ...]
    relation: str | None = None
    place: str | None = None
    background: str | None = None


def write(spec: Spec, prefix: str = "") -> str:
    """The prompt text of a spec."""
    text = _noun(spec.items[0])
    if len(spec.items) == 2:
        text += f" {spec.relation or 'and'} {_noun(spec.items[1])}"
    if spec.place:
        text += f" {spec.place}"
    if spec.background:
        text += f" on a {spec.background} background"
    return prefix + text


def _noun(item: Item) -> str:
    words = [item.size, item.color, item.shape if item.count == 1 else PLURALS[item.shape]]
    number = next((word for word, value in NUMBERS.items() if value == item.count), None)
    first = next(word for word in words if word)
    article = number or ("an" if first[0] in "aeiou" else "a")
    return " ".join(word for word in [article, *words] if word)


def _one_of(words: Iterator[str] | tuple[str, ...] | list[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_NOUN = (
    rf"(?:an?|one|(?P<number{{n}}>{_one_of(list(NUMBERS))}))(?: (?P<size{{n}}>{_one_of(SIZES)}))?"
    rf"(?: (?P<color{{n}}>{_one_of(list(OBJECT_COLORS))}))? (?P<shape{{n}}>{_one_of([*PLURALS.values(), *SHAPES])})"
)
_PROMPT = re.compile(
    rf"(?:{_one_of(PREFIXES[1:])})?{_NOUN.format(n=0)}"
    rf"(?: (?P<relation>and|{_one_of([*SPATIAL, *COMPARISONS, SAME_COLOR])}) {_NOUN.format(n=1)})?"
    rf"(?: (?P<place>{_one_of(PLACES)}))?(?: on an? (?P<background>{_one_of(list(BACKGROUND_COLORS))}) background)?"
)


def read(text: str) -> Spec:
    """The spec of a prompt text; InputError when this world cannot say it."""
    match = _PROMPT.fullmatch(" ".join(text.lower().replace("colour", "color").strip(" .").split()))
    if match is None or _relates_groups(match.groupdict()):
        raise InputError(
            f"the shapes world cannot read the prompt {text!r}; it knows sentences like 'a red circle left of a blue "
            f"square', 'three green crosses', 'a big triangle at the top', 'a red circle on a black background'"
        )
    found = match.groupdict()
    items = tuple(_item(found, n) for n in (0, 1) if found[f"shape{n}"])
    relation = None if found["relation"] == "and" else found["relation"]
    spec = Spec("", items, relation, found["place"], found["background"])
    return replace(spec, category=_category(spec))


def _relates_groups(found: dict[str, str | None]) -> bool:
    """A relation holds between two objects: of "two circles left of a square" nobody can say which circle is meant."""
    return found["relation"] not in (None, "and") and bool(found["number0"] or found["number1"])


def _item(found: dict[str, str | None], n: int) -> Item:
    word = str(found[f"shape{n}"])
    shape = next((s for s, plural in PLURALS.items() if plural == word), word)
    return Item(shape, found[f"color{n}"], found[f"size{n}"], NUMBERS.get(str(found[f"number{n}"]), 1))


def _category(spec: Spec) -> str:
    if spec.background:
        return "background"
    if spec.relation:
        return "spatial" if spec.relation in SPATIAL else "non_spatial"
    if len(spec.items) == 2:
        return "two_objects"
    if spec.items[0].count > 1:
        return "counting"
    return "colors" if spec.items[0].color and not spec.place else "single_object"


@cache
def specs(category: str) -> tuple[Spec, ...]:
    """Every combination of a category, in a fixed order."""
    return tuple(_combinations(category))


def _combinations(category: str) -> Iterator[Spec]:
    painted = [Item(shape, color) for shape in SHAPES for color in OBJECT_COLORS]
    sizes = (None, *SIZES)
    if category == "single_object":
        for shape, size, place in itertools.product(SHAPES, sizes, (None, *PLACES)):
            yield Spec(category, (Item(shape, None, size),), place=place)
    elif category == "colors":
        for item, size in itertools.product(painted, sizes):
            yield Spec(category, (replace(item, size=size),))
    elif category == "two_objects":
        for first, second in itertools.permutations(painted, 2):
            yield Spec(category, (first, second))
    elif category == "counting":
        for shape, color, count in itertools.product(SHAPES, (None, *OBJECT_COLORS), NUMBERS.values()):
            yield Spec(category, (Item(shape, color, count=count),))
    elif category == "spatial":
        for (first, second), relation in itertools.product(itertools.permutations(painted, 2), SPATIAL):
            yield Spec(category, (first, second), relation)
    elif category == "non_spatial":
        for (first, second), relation in itertools.product(itertools.permutations(painted, 2), COMPARISONS):
            yield Spec(category, (first, second), relation)
        for first, second in itertools.permutations(SHAPES, 2):
            yield Spec(category, (Item(first), Item(second)), SAME_COLOR)
    elif category == "background":
        for item, background in itertools.product(painted, BACKGROUND_COLORS):
            yield Spec(category, (item,), background=background)


_KINDS: tuple[tuple[str, ...], ...] = (
    tuple(OBJECT_COLORS), tuple(SHAPES), tuple(PLURALS.values()), tuple(NUMBERS), tuple(BACKGROUND_COLORS), SIZES,
    ("left", "right"), ("above", "below"), ("top", "bottom"), ("bigger", "smaller"),
)  # fmt: skip


def change_one_word(text: str, rng: Generator) -> str:
    """The same sentence with one word of meaning replaced by another of its kind."""
    words = text.split()
    spots = [(i, kind) for i, word in enumerate(words) for kind in _KINDS if word in kind]
    i, kind = spots[rng.integers(len(spots))]
    words[i] = str(rng.choice([word for word in kind if word != words[i]]))
    if words[i - 1] in ("a", "an"):
        words[i - 1] = "an" if words[i][0] in "aeiou" else "a"
    return " ".join(words)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(spec: Spec) -> str:
    """``train`` or ``heldout``, by combination: the order of two objects joined by "and" makes no difference."""
    items = spec.items
    if len(items) == 2 and spec.relation in (None, SAME_COLOR):
        items = tuple(sorted(items, key=_noun))
    return "train" if _number("split " + write(replace(spec, items=items))) % HELDOUT_SHARE else "heldout"


@cache
def split_specs(category: str, split: str) -> tuple[Spec, ...]:
    return tuple(spec for spec in specs(category) if split_of(spec) == split)


@cache
def prompts(split: str) -> tuple[Prompt, ...]:
    """The prompt list of a split, in a fixed shuffled order that takes turns among the categories."""
    columns: list[list[Prompt]] = []
    for category in CATEGORIES:
        texts = [write(spec, prefix) for spec in split_specs(category, split) for prefix in PREFIXES]
        few = [text for text in texts if SAME_COLOR in text]  # thousands compare sizes, a few dozen compare colours
        rest = sorted(set(texts) - set(few), key=_number)
        chosen = sorted(few + rest[: max(0, PER_CATEGORY[split] - len(few))], key=_number)
        columns.append([Prompt.of(t, category=category, split=split, source=f"shapes:{split}") for t in chosen])
    turns = itertools.zip_longest(*columns)
    return tuple(prompt for turn in turns for prompt in turn if prompt is not None)
