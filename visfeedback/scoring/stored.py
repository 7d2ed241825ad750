"""The images of a store as a source. May import: store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from visfeedback import store
from visfeedback.scoring.sources import Fetch, Item, listed, text


class StoreSource:
    """Every sample once for each prompt, named by its id, in the order of arrival."""

    def __init__(self, url: str) -> None:
        self._url = url
        with store.open(url, create=False):
            pass  # wrong URLs are refused here

    def items(self) -> Iterator[Item]:
        with store.open(self._url, create=False) as opened:
            for sample in opened.samples():
                yield listed(Path(sample.path), sample.id, text(sample.prompt))

    def fetch(self, location: str) -> Fetch:
        return Path(location).read_bytes
