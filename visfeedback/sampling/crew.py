"""Processes that a launcher started for one task: `accelerate launch` and `torchrun` say who is who in the environment.

Nothing of a GPU is used to meet, so a process may work for days before the others come.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch import distributed

from visfeedback.plugins import InputError

PATIENCE = timedelta(days=30)
"""how long a process waits for the others"""


@dataclass(frozen=True)
class Crew:
    """This process among all."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_launcher(cls) -> Crew:
        """As the launcher says; alone without one."""
        known = os.environ
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= known.keys():
            return cls()
        return cls(int(known["RANK"]), int(known["WORLD_SIZE"]))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all processes are here."""
        self._share(None)

    def first(self, work: Callable[[], Any]) -> None:
        """The first process does it, the others wait; an InputError or OSError of the first one is raised in all."""
        error: Exception | None = None
        if self.leads:
            try:
                work()
            except (InputError, OSError) as caught:
                error = caught
        error = self._share(error)
        if error is not None:
            raise error

    def _share(self, value: Any) -> Any:
        """What the first process has."""
        if self.size == 1:
            return value
        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=PATIENCE)
        distributed.barrier()
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]
