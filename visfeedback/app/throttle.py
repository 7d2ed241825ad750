"""How much one person or address may ask for: token buckets, and a lock after wrong passwords."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MOST = 20_000  # keys that are remembered; the oldest are forgotten, which makes them full again


class Buckets:
    """A bucket for each key: ``rate`` tokens a second flow in, at most ``burst`` fit."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self._level: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str, count: float = 1.0) -> bool:
        """Whether there was enough; then it is gone."""
        with self._lock:
            level, now = self._now(key)
            enough = level >= count
            self._keep(key, level - count if enough else level, now)
            return enough

    def give_back(self, key: str) -> None:
        """One that was taken for nothing."""
        with self._lock:
            level, now = self._now(key)
            self._keep(key, min(self.burst, level + 1), now)

    def wait(self, key: str, count: float = 1.0) -> float:
        """Seconds until ``take`` would say yes; takes nothing."""
        with self._lock:
            return max(0.0, (count - self._now(key)[0]) / self.rate)

    def _now(self, key: str) -> tuple[float, float]:
        now = self.clock()
        level, then = self._level.get(key, (self.burst, now))
        return min(self.burst, level + (now - then) * self.rate), now

    def _keep(self, key: str, level: float, now: float) -> None:
        self._level[key] = (level, now)
        self._level.move_to_end(key)
        if len(self._level) > MOST:
            self._level.popitem(last=False)


class LogIns:
    """Wrong passwords: a few at once for a name, more for an address behind which there may be many people; then one
    now and then. A right password that comes while a name is locked does not count either, so that guessing goes no
    faster than this."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._names = Buckets(1 / 60, 5, clock)
        self._addresses = Buckets(1 / 10, 30, clock)

    def wait(self, name: str, address: str) -> float:
        """Seconds until the next try; 0 when it may be now."""
        return max(self._names.wait(f"{name}\0{address}"), self._addresses.wait(address))

    def begin(self, name: str, address: str) -> float:
        """Seconds until the next try; 0 when it may be now, and then it counts as failed until `passed`: a thousand
        tries at once are no way around."""
        wait = self.wait(name, address)
        if wait == 0 and self._names.take(f"{name}\0{address}"):
            self._addresses.take(address)
        return wait

    def passed(self, name: str, address: str) -> None:
        self._names.give_back(f"{name}\0{address}")
        self._addresses.give_back(address)
