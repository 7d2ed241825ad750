"""What every part of the app is given: the store, the desk, who is asking, and what was handed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visfeedback.app.protocols import Generator
from visfeedback.app.settings import Collect

if TYPE_CHECKING:
    from visfeedback.app.people import People
    from visfeedback.app.rounds import Rounds
    from visfeedback.store import Store
    from visfeedback.store.desk import Desk


@dataclass
class Context:
    """One running collection. Handlers are plain functions of a context and values."""

    store: Store
    url: str
    """the store's URL as `visfeedback train` and `store export` take it; may hold a password: not for the page"""
    project: str
    desk: Desk
    settings: Collect
    folder: Path
    """beside the store: what the app writes there (runs/, exports/, refusals.jsonl, consents.jsonl)"""
    people: People
    model: str = ""
    """the model that draws live, or whose adapters are trained: `shapes:sd`; empty when none was named"""
    adapters: tuple[str, ...] = ()
    """the candidate adapters that were named"""
    prompts: str = ""
    """where live prompts come from: `shapes:train`, a file; empty when none"""
    generator: Generator | None = None
    rounds: Rounds | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    """what tabs keep for the whole server, by the name of the tab (a training process that is running)"""

    @property
    def runs(self) -> Path:
        """The folder for training runs."""
        return self.folder / "runs"

    def who(self, request: Any) -> str:
        """The judge behind a request of Gradio or FastAPI, `human:ada`. Raises Refused when nobody is logged in."""
        return self.people.judge(request)

    def is_operator(self, request: Any) -> bool:
        """Whether this person may train, export and see other people's numbers."""
        return self.people.is_operator(request)
