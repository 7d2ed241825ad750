"""Train: the collected votes become a Diffusion-DPO run, which is watched, stopped, resumed, judged and downloaded.

The run is a process of its own (`visfeedback train`), and all that is known of it stands in its folder: a reload of the
page and a restart of the server change nothing. What the buttons do is in ``train_actions``; here they are connected.
May import: the app's neighbours; gradio.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from visfeedback.app import board_html as html
from visfeedback.app import train_actions as actions
from visfeedback.app import train_runs
from visfeedback.app.board_wiring import SLOW, Wires
from visfeedback.app.context import Context

NAME = "Train"
ORDER = 20
ABOUT = (
    "Base and tuned model draw prompts that were not trained on, with the same seeds; a judge says which is better. "
    "Small gains need many pictures to be seen: with 512 on each side, 54% is told from chance, with 128 it is not."
)


def build(context: Context) -> None:
    given = actions.suggestions(context)
    gr.HTML(html.style(), apply_default_css=False)
    about = gr.HTML(elem_id="train-ready", apply_default_css=False)
    fields, begin = _knobs(given)
    said = gr.HTML(elem_id="train-said", apply_default_css=False)
    with gr.Row():
        chosen = gr.Dropdown([], label="Run", interactive=True, allow_custom_value=True, elem_id="train-run",
                             min_width=180)  # fmt: skip
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="train-stop", elem_classes="vf-go",
                         min_width=100)  # fmt: skip
        resume = gr.Button("Resume", interactive=False, elem_id="train-resume", elem_classes="vf-go", min_width=100)
    parts = {
        key: gr.HTML(elem_id=f"train-{key}", apply_default_css=False) for key in ("progress", "curves", "pictures")
    }
    shown: dict[str, Any] = {**parts, "stop": stop, "resume": resume}
    question = _judging(given, shown)
    _wire(context, about, fields, begin, chosen, said, shown, question)


def _knobs(given: dict[str, Any]) -> tuple[list[Any], Any]:
    """Name, steps, beta, rank; and the button."""
    with gr.Row():
        fields = [
            gr.Textbox(given["name"], label="Name of the run", max_length=64, elem_id="train-name", min_width=140,
                       info="letters, digits, - and _"),
            gr.Number(given["steps"], label="Steps", precision=0, elem_id="train-steps", min_width=140,
                      info="more: learns more, drifts more"),
            gr.Number(given["beta"], label="Beta", elem_id="train-beta", min_width=140,
                      info="smaller: learns more, drifts more"),
            gr.Number(given["rank"], label="Rank of the LoRA", precision=0, elem_id="train-rank", min_width=140,
                      info="larger: more to learn with"),
        ]  # fmt: skip
        begin = gr.Button("Train", variant="primary", elem_id="train-start", elem_classes="vf-go", min_width=120)
    return fields, begin


def _judging(given: dict[str, Any], shown: dict[str, Any]) -> list[Any]:
    """The lower half of the page; adds its parts to ``shown`` and returns what a comparison needs to know."""
    gr.HTML(html.page(html.words("Does it win?", "h3"), html.words(ABOUT)), apply_default_css=False)
    with gr.Row():
        prompts = gr.Textbox(given["prompts"], label="Prompts, one a line", lines=1, max_lines=8, scale=3,
                             elem_id="train-prompts", min_width=220)  # fmt: skip
        count = gr.Number(2, label="Images each", precision=0, elem_id="train-count",
                          min_width=100)  # fmt: skip
        rewards = gr.Textbox(given["rewards"], label="Rewards that look on", elem_id="train-rewards", min_width=140,
                             placeholder="pickscore, hpsv2")  # fmt: skip
        shown["compare"] = gr.Button("Compare base and tuned", interactive=False, elem_id="train-compare",
                                     elem_classes="vf-go", min_width=160)  # fmt: skip
    shown["verdict"] = gr.HTML(elem_id="train-verdict", apply_default_css=False)
    with gr.Row():
        shown["download"] = gr.DownloadButton("Download the adapter", visible=False, elem_id="train-download")
        shown["blind"] = gr.Button("Let people compare it blindly", interactive=False, visible=False,
                                   elem_id="train-blind")  # fmt: skip
    shown["code"] = gr.Code(label="Use it in diffusers", language="python", visible=False, interactive=False,
                            elem_id="train-code")  # fmt: skip
    return [prompts, count, rewards]


def _wire(
    context: Context, about: Any, fields: list[Any], begin: Any, chosen: Any, said: Any, shown: dict[str, Any],
    question: list[Any],
) -> None:  # fmt: skip
    wires, seen, timer = Wires(context), gr.State({}), gr.Timer(SLOW, active=False)
    outputs = [*shown.values(), seen, timer, said]

    def view(run: str | None, before: actions.Seen, sentence: str | None = None) -> list[Any]:
        changed, now = actions.look(context, run, before)
        told = gr.skip() if sentence is None else html.page(html.say(sentence))
        tick = gr.Timer(actions.pace(context), active=True)
        return [*(changed.get(key, gr.skip()) for key in shown), now, tick, told]

    def choice(run: str | None, name: str) -> list[Any]:
        """The list of runs, and a free name for the next one; one that somebody is typing stays."""
        known = actions.names(context)
        fresh = train_runs.free_name(context.runs) if name in known or not name else gr.skip()
        return [gr.update(choices=known, value=run), fresh]

    def started(name: str, *values: Any) -> list[Any]:
        sentence = actions.start(context, name, *values)
        return [*view(name, {}, sentence), *choice(name, name)]

    def does(action: Callable[..., str]) -> Callable[..., list[Any]]:
        """An action on the chosen run; then what it says, and another look."""
        return lambda run, before, *values: view(run, before, action(context, run, *values))

    def arrived(run: str | None, name: str) -> list[Any]:
        known = actions.names(context)
        run = run if run in known else next(iter(known), None)
        return [*view(run, {}), *choice(run, name), actions.readiness(context)]

    wires.on(begin.click, started, fields, [*outputs, chosen, fields[0]], said)
    for key, action in (("stop", actions.stop), ("resume", actions.resume), ("blind", actions.blind)):
        wires.on(shown[key].click, does(action), [chosen, seen], outputs, said)
    wires.on(shown["compare"].click, does(actions.compare), [chosen, seen, *question], outputs, said)
    wires.on(chosen.input, lambda run: view(run, {}), [chosen], outputs, said)
    wires.on(timer.tick, view, [chosen, seen], outputs, said)
    wires.arrive(arrived, [chosen, fields[0]], [*outputs, chosen, fields[0], about], said)
