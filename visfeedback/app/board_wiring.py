"""How tabs connect buttons with functions: who asks is checked at every event, and what is wrong is said on the page.

Events can be called by raw HTTP whatever the page shows, so hiding a button protects nothing. May import: gradio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import gradio as gr
from gradio.context import Context as Building

from visfeedback.app import board_html as html
from visfeedback.app.context import Context
from visfeedback.plugins import InputError
from visfeedback.store.desk import Refused

FAST, SLOW = 2.0, 15.0
"""seconds between looks while something happens, and while nothing does"""
AT_ONCE = 4
"""operators whose looks are answered at the same time"""


class Wires:
    """Connects the events of one tab."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def on(
        self, event: Any, does: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], said: Any, *,
        busy: bool = False, tells: bool = False, judge: bool = False, event_data: bool = False, each: bool = False,
        line: str | None = None,
    ) -> Any:  # fmt: skip
        """``does(*values)`` fills ``outputs``, of which ``said`` is one: there a problem is told, the rest stays.

        ``busy``: it may take long, so ``said`` shows that something happens. ``tells``: it is given a function first,
        whose sentences ``said`` shows meanwhile, ``judge``: then who asks, ``event_data``: then what the event carries.
        ``each``: events come one by one and none is left out.
        ``line``: events of one name wait for each other, so that a late answer never covers a later one's.
        """
        place = list(outputs).index(said)

        def only(sentence: str, tone: str = "plain") -> Any:
            told: list[Any] = [gr.skip() for _ in outputs]
            told[place] = html.page(html.say(sentence, tone))
            return told[0] if len(told) == 1 else told

        def guarded(request: gr.Request, data: gr.EventData, *values: Any, first: Sequence[Any] = ()) -> Any:
            try:
                who = self.check(request)
                return does(*first, *([who] if judge else []), *([data] if event_data else []), *values)
            except InputError as error:
                return only(str(error), "bad")

        def telling(request: gr.Request, data: gr.EventData, *values: Any) -> Iterator[Any]:
            yield from spoken(
                lambda said: guarded(request, data, *values, first=(said,)), lambda words: only(words, "busy")
            )

        return event(
            telling if tells else guarded, list(inputs), list(outputs), api_visibility="private",
            show_progress="minimal" if busy else "hidden", show_progress_on=said if busy else None,
            concurrency_limit=1 if each or line else AT_ONCE, concurrency_id=line,
            trigger_mode="multiple" if each else "once",
        )  # fmt: skip

    def check(self, request: Any) -> str:
        """The operator who asks. Refused for everybody else."""
        judge = self.context.who(request)
        if not self.context.is_operator(request):
            raise Refused("this is for operators")
        return judge

    def hide(self) -> None:
        """The tab that is being built is not shown."""
        block = self._tab()
        if block is not None:
            block.visible = False

    def _tab(self) -> gr.Tab | None:
        block = Building.block
        while block is not None and not isinstance(block, gr.Tab):
            block = block.parent
        return block

    def arrive(
        self, does: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], said: Any, *, judge: bool = False
    ) -> None:
        """When somebody comes to the tab that is being built, or, where there are no tabs, to the page."""
        block, root = self._tab(), Building.root_block
        assert root is not None, "tabs are built inside gr.Blocks"
        self.on(block.select if block is not None else root.load, does, inputs, outputs, said, judge=judge)


def spoken(work: Callable[[Callable[[str], None]], Any], shown: Callable[[str], Any]) -> Iterator[Any]:
    """``shown`` of every sentence that ``work`` says on the way, at once, and at the end what it returns.

    Whoever stops listening stops nothing: the work is done to its end.
    """
    said: SimpleQueue[str | None] = SimpleQueue()
    with ThreadPoolExecutor(1, "telling") as worker:
        done = worker.submit(work, said.put)
        done.add_done_callback(lambda _: said.put(None))
        while (sentence := said.get()) is not None:
            yield shown(sentence)
        yield done.result()
