"""Leaderboard: which model wins, how sure that is, and who won against whom. Names are hidden until somebody asks.

May import: the app's neighbours; gradio.
"""

from __future__ import annotations

from typing import Any, cast, get_args

import gradio as gr

from visfeedback.app import board_html as html
from visfeedback.app.board_models import Boards, Who, aliases, short_names, shown
from visfeedback.app.board_wiring import SLOW, Wires
from visfeedback.app.context import Context
from visfeedback.plugins import InputError

NAME = "Leaderboard"
ORDER = 30
LABELS = {"people": "People", "programs": "Programs and models", "everybody": "Everybody together"}


def look(context: Context, who: str, names: bool) -> str:
    """The board as HTML. InputError for a group of judges that does not exist."""
    if who not in get_args(Who):
        raise InputError(f"no judges {who!r:.40}; expected {', '.join(get_args(Who))}")
    boards = context.extras.setdefault("boards", Boards(context.store))
    found = boards(cast(Who, who))
    models = [row["model"] for row in found.rows]
    known = short_names(models) if names else aliases(models, context.store.secret())
    return shown(found, known.__getitem__)


def build(context: Context) -> None:
    wires = Wires(context)
    gr.HTML(html.style(), apply_default_css=False)
    who = gr.Radio([(LABELS[w], w) for w in get_args(Who)], value="people", label="Votes of", elem_id="board-who")
    with gr.Row():
        names = gr.Checkbox(False, label="Show the models' names", elem_id="board-names", min_width=240,
                            info="Hidden at first: whoever judges should not know what is ahead.")  # fmt: skip
        again = gr.Button("Refresh", elem_id="board-refresh", elem_classes="vf-go", min_width=120)
    board = gr.HTML(elem_id="board", apply_default_css=False)
    timer = gr.Timer(SLOW, active=False)

    def view(judges: str, named: bool) -> Any:
        return look(context, judges, bool(named))

    def arrive(judges: str, named: bool) -> list[Any]:
        return [view(judges, named), gr.Timer(SLOW, active=True)]

    for event in (again.click, who.input, names.input, timer.tick):
        wires.on(event, view, [who, names], [board], board)
    wires.arrive(arrive, [who, names], [board, timer], board)
