"""Which prompts an image is scored against: its own, one for all, or every one there is. May import: types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from visfeedback.plugins import InputError
from visfeedback.scoring.settings import Pairing
from visfeedback.scoring.sources import Item


def resolve(pairing: Pairing | None, prompts: Sequence[str]) -> Pairing:
    """What is meant when nobody says: the images' own prompts, or the single prompt that is given for all of them.

    Raises InputError when prompts and pairing do not fit.
    """
    if pairing is None:
        if len(prompts) > 1:
            raise InputError(
                f"{len(prompts)} prompts: add --pairing paired (one for each image, in order) or --pairing matrix (all "
                "against all)"
            )
        return "one" if prompts else "paired"
    if pairing == "one" and len(prompts) != 1:
        raise InputError(f"--pairing one needs exactly one prompt, --prompts gives {len(prompts)}")
    return pairing


def columns(items: Iterable[Item], prompts: Sequence[str], pairing: Pairing) -> tuple[str, ...] | None:
    """The prompts of a matrix, each once: the given ones, else those of all images; None when it is no matrix."""
    if pairing != "matrix":
        return None
    found = tuple(dict.fromkeys(prompts or (item.prompt for item in items if item.prompt)))
    if not found:
        raise InputError(
            "--pairing matrix needs prompts; give --prompts FILE, or images that have prompts of their own"
        )
    return found


def assign(items: Iterable[Item], prompts: Sequence[str], pairing: Pairing) -> Iterator[Item]:
    """Items with the prompt of their own row; None in a matrix, whose prompts are ``columns``.

    Raises InputError when prompts are given for each image and their numbers differ, at the end of the shorter.
    """
    if pairing == "matrix":
        yield from (item._replace(prompt=None) for item in items)
    elif pairing == "one":
        yield from (item._replace(prompt=prompts[0]) for item in items)
    elif not prompts:
        yield from items
    else:
        count = 0
        for count, item in enumerate(items, 1):
            if count <= len(prompts):
                yield item._replace(prompt=prompts[count - 1])
        if count != len(prompts):
            raise InputError(
                f"{count} images and {len(prompts)} prompts; --pairing paired needs one prompt for each image, in the "
                "order of the images' names"
            )
