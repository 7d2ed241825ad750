"""Who draws the rounds of the app's Rounds tab, on the model of `visfeedback collect`: FABRIC; D3PO has its own file.

Another engine goes beside them with the same ``draw``: ``ask.past`` holds the images and marks of all rounds so far,
and ``said`` tells people how it goes. Then name it in ``rounds``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visfeedback.app.rounds import Ask, Engine
    from visfeedback.cli.collect_live import Painter
    from visfeedback.sampling.fabric.session import FabricSession
    from visfeedback.types.records import Sample

CAP = 4.0
"""what all liked images may weigh together: in sessions they add up, and the newest shall still count"""
BUDGET_MIB = 2048.0
"""for keys and values that are kept over rounds; what does not fit is computed again"""


@dataclass(frozen=True)
class Handed:
    """What the app is given; satisfies `app.rounds.Rounds`."""

    engines: Mapping[str, Engine]


def rounds(painter: Painter) -> Handed:
    """Engines on the model of live drawing, whose lock they share; an engine that cannot draw with it is left out, and
    where none can, the tab is not shown."""
    from visfeedback.cli._rounds_d3po import D3PORounds
    from visfeedback.plugins import InputError

    engines: dict[str, Engine] = {}
    for name, engine in (("fabric", Fabric), ("d3po", D3PORounds)):
        with suppress(InputError):
            engines[name] = engine(painter)
    return Handed(engines)


class Fabric:
    """Liked and disliked images act through self-attention, so nothing is trained; their keys and values are kept from
    round to round."""

    title = "FABRIC: steers at once"

    def __init__(self, painter: Painter) -> None:
        self.painter = painter
        self._session: FabricSession = self._fresh(0.5)

    def draw(self, ask: Ask, said: Callable[[str], None]) -> list[Sample]:
        from visfeedback.sampling.fabric.references import read_references
        from visfeedback.sampling.generate import derive_seed

        count, painter = ask.wish.images, self.painter
        seeds = [derive_seed(ask.wish.seed, ask.prompt.id, 1000 * ask.number + place) for place in range(count)]
        liked, disliked = read_references(ask.liked), read_references(ask.disliked)
        said(f"Drawing {count} images along {len(liked)} liked and {len(disliked)} disliked ones.")
        with painter.device:  # one at a time: the session's processors sit on the shared network
            session = self._session_of(ask.wish.strength)
            session.liked[:], session.disliked[:] = liked, disliked
            with session:
                images = painter.draw([ask.prompt] * count, seeds)
            record = session.record() if liked or disliked else None
        return self._kept(ask, seeds, images, record)

    def _session_of(self, strength: float) -> FabricSession:
        """The session whose keys and values are kept; another strength needs another one."""
        if self._session.settings.strength != strength:
            self._session = self._fresh(strength)
        return self._session

    def _fresh(self, strength: float) -> FabricSession:
        from visfeedback.sampling.fabric.session import FabricSession
        from visfeedback.sampling.fabric.settings import FabricSettings

        return FabricSession(self.painter.pipe, FabricSettings(strength=strength, cap=CAP, budget_mib=BUDGET_MIB))

    def _kept(self, ask: Ask, seeds: list[int], images: list[Any], record: dict[str, Any] | None) -> list[Sample]:
        """In the store, with what steered them."""
        about = {"session": ask.session, "round": ask.number} | ({"fabric": record} if record else {})
        drawn = []
        for seed, image in zip(seeds, images, strict=True):
            one = self.painter._sample(ask.prompt, seed, image, "")
            drawn.append(one._replace(sample=one.sample.model_copy(update={"call": {**one.sample.call, **about}})))
        self.painter.store.add_drawn(drawn)
        found = self.painter.store.samples_of([one.sample.id for one in drawn])
        return [found[ask.prompt.id, one.sample.id] for one in drawn]
