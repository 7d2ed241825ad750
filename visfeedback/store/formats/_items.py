"""From rows to the store: a row's images and what was said about them go in together, in bounded pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError

from visfeedback.plugins import InputError
from visfeedback.store.core import Drawn, Store
from visfeedback.store.formats._rows import Row
from visfeedback.store.images import BadImage
from visfeedback.types.records import PAIR_VALUES, Choice, Feedback, text_id

ITEMS = 2000  # rows added in one step
BYTES = 32 << 20  # of images held at a time


class Item(NamedTuple):
    """The images of a row, and the feedback on them."""

    drawn: tuple[Drawn, ...]
    feedback: tuple[Feedback, ...]


class Dropped(Exception):
    """This row cannot be used; ``str()`` is the reason that is counted."""


def add(store: Store, rows: Iterable[Row], item: Callable[[Row], Item]) -> dict[str, Any]:
    """Add what ``item`` makes of each row; returns counts of new samples and feedback, and of dropped rows by reason.

    A row whose image is damaged is dropped and counted. InputError from ``item`` goes through.
    """
    dropped = Counter[str]()
    added = {"sample": 0, "feedback": 0}
    for part in _parts(_items(rows, item, dropped)):
        added["sample"] += store.add_drawn(one for entry in part for one in entry.drawn)
        added["feedback"] += store.add_feedback(record for entry in part for record in entry.feedback)
    return added | {"dropped": dict(sorted(dropped.items()))}


def _items(rows: Iterable[Row], item: Callable[[Row], Item], dropped: Counter[str]) -> Iterator[Item]:
    for row in rows:
        try:
            yield item(row)
        except BadImage:
            dropped["damaged image"] += 1
        except Dropped as reason:
            dropped[str(reason)] += 1
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the row"
            raise InputError(f"{row.where}: {where}: {first['msg']}") from None


def _parts(items: Iterable[Item]) -> Iterator[list[Item]]:
    part: list[Item] = []
    held = 0
    for item in items:
        part.append(item)
        held += sum(len(one.data) for one in item.drawn)
        if len(part) >= ITEMS or held >= BYTES:
            yield part
            part, held = [], 0
    if part:
        yield part


def answer(share: float) -> Choice:
    """The choice that goes with P(a)."""
    return "a" if share > 0.5 else "b" if share < 0.5 else "tie"


def pair(row: Row, a: Drawn, b: Drawn, choice: Choice, share: float | None = None, **more: Any) -> Feedback:
    """Feedback on the two images; ``share`` is P(a) where the file says more than the choice.

    The id is that of the file where it has one (`feedback_id`), else made from the content and the number of the row:
    reading a file again adds nothing.
    """
    values = PAIR_VALUES[choice] if share is None else (share, 1 - share)
    said: dict[str, Any] = {"judge": "import:file"} | {k: v for k, v in more.items() if v is not None}
    ids = (a.sample.id, b.sample.id)
    name = row.values.get("feedback_id") or text_id(
        "import",
        a.sample.prompt_id,
        *ids,
        choice,
        str(values),
        said["judge"],
        said.get("criterion", ""),
        str(row.number),
    )
    return Feedback(
        id=name, prompt_id=a.sample.prompt_id, sample_ids=ids, choice=choice, values=values, **said
    )  # fmt: skip
