"""Rounds: images are drawn, liked and disliked by mouse or keyboard, and the next round follows what was liked.

Every mark is in the store at once, and so is every round: a reload, another tab or another day goes on where one was.
Shown only where `visfeedback collect` hands in somebody who draws. What the buttons do is in ``board_rounds``; here
they are connected. May import: the app's neighbours; gradio.
"""

from __future__ import annotations

from typing import Any, cast

import gradio as gr

from visfeedback.app import board_html as html
from visfeedback.app import board_rounds as actions
from visfeedback.app.board_wiring import Wires
from visfeedback.app.context import Context
from visfeedback.app.rounds import Rounds, Session

NAME = "Rounds"
ORDER = 25


def build(context: Context) -> None:
    gr.HTML(html.style() + actions.STYLE, apply_default_css=False)
    if not actions.available(context):
        Wires(context).hide()
        return
    form = _form(context)
    with gr.Row():
        chosen = gr.Dropdown([], label="Sessions", allow_custom_value=True, elem_id="rounds-session", min_width=220)
        rounds = gr.Radio([], label="Rounds", elem_id="rounds-history", min_width=220)
    said = gr.HTML(html.page(html.say(actions.NONE)), elem_id="rounds-said", apply_default_css=False)
    images = gr.HTML(elem_id="rounds-grid", js_on_load=actions.GRID, apply_default_css=False)
    _wire(context, form, chosen, rounds, said, images)


def _form(context: Context) -> dict[str, Any]:
    """Fields of a new session, by name, and the button `go`."""
    engines = cast(Rounds, context.rounds).engines
    with gr.Row():
        fields: dict[str, Any] = {
            "prompt": gr.Textbox(label="What to draw", max_length=2000, scale=3, elem_id="rounds-prompt",
                                 min_width=220),
            "images": gr.Slider(2, 9, 4, step=1, label="Images a round", elem_id="rounds-images", min_width=250),
            "strength": gr.Slider(0, 1, 0.5, step=0.05, label="Strength of likes", elem_id="rounds-strength",
                                  min_width=270),
            "seed": gr.Number(0, label="Seed", precision=0, elem_id="rounds-seed", min_width=90),
        }  # fmt: skip
        fields["engine"] = gr.Dropdown(
            [(engine.title, name) for name, engine in engines.items()], value=next(iter(engines)), label="How",
            visible=len(engines) > 1, elem_id="rounds-engine", min_width=290,
        )  # fmt: skip
        fields["go"] = gr.Button(
            "Begin", variant="primary", elem_id="rounds-start", elem_classes="vf-go", min_width=110
        )
    return fields


def _wire(context: Context, form: dict[str, Any], chosen: Any, rounds: Any, said: Any, images: Any) -> None:
    wires = Wires(context)
    shown = [said, images, rounds, chosen]

    def view(judge: str, session: Session, number: int) -> list[Any]:
        known = [(words, name) for name, words in actions.sessions(context).all(judge)]
        return [
            html.page(html.say(actions.standing(session, number))), actions.grid(context, session, number),
            gr.update(choices=actions.history(session), value=number), gr.update(choices=known, value=session.id),
        ]  # fmt: skip

    def started(say: Any, judge: str, prompt: str, count: Any, strength: Any, seed: Any, engine: str) -> list[Any]:
        values = {"prompt": prompt, "images": count, "strength": strength, "seed": seed, "engine": engine}
        session = actions.begin(context, judge, say, **values)
        return view(judge, session, 0)

    def next_round(say: Any, judge: str, event: gr.EventData, session: str, number: Any) -> list[Any]:
        drawn = actions.follow(context, judge, session, number, _told(event).get("marks"), say)
        return view(judge, drawn, drawn.rounds[-1].number)

    def opened(judge: str, session: str) -> list[Any]:
        found = actions.sessions(context).find(judge, session)
        return view(judge, found, found.rounds[-1].number)

    def back(judge: str, session: str, number: Any) -> list[Any]:
        return view(judge, actions.sessions(context).find(judge, session), int(number))

    def arrived(judge: str, session: str | None) -> list[Any]:
        known = [name for name, _ in actions.sessions(context).all(judge)]
        if not known:
            return [gr.skip()] * len(shown)
        return opened(judge, session if session in known else known[0])

    def marked(judge: str, event: gr.EventData, session: str, number: Any) -> list[Any]:
        told = _told(event)
        value = actions.mark(context, judge, session, number, told.get("place"), told.get("mark"))
        now = actions.history(actions.sessions(context).find(judge, session))
        return [html.page(html.say(value)), gr.update(choices=now)]

    fields = [form[name] for name in ("prompt", "images", "strength", "seed", "engine")]
    for event in (form["go"].click, form["prompt"].submit):
        wires.on(event, started, fields, shown, said, busy=True, tells=True, judge=True)
    wires.on(
        images.next, next_round, [chosen, rounds], shown, said, busy=True, tells=True, judge=True, event_data=True,
        line="marks",
    )  # fmt: skip
    wires.on(chosen.input, opened, [chosen], shown, said, judge=True)
    wires.on(rounds.input, back, [chosen, rounds], shown, said, judge=True)
    wires.on(
        images.mark,
        marked,
        [chosen, rounds],
        [said, rounds],
        said,
        judge=True,
        event_data=True,
        each=True,
        line="marks",
    )
    wires.arrive(arrived, [chosen], shown, said, judge=True)


def _told(event: gr.EventData) -> dict[str, Any]:
    """What the screen said with an event: anything, so far."""
    told = getattr(event, "_data", None)
    return told if isinstance(told, dict) else {}
