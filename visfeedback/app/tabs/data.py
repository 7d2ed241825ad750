"""Data: how people judge, what they said last, and the store as files of every tool, out and in.

May import: the app's neighbours; gradio.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from visfeedback.app import board_html as html
from visfeedback.app import data_moves, data_view
from visfeedback.app.board_wiring import SLOW, Wires
from visfeedback.app.context import Context
from visfeedback.app.data_view import Overviews
from visfeedback.plugins import InputError
from visfeedback.store import transfer

NAME = "Data"
ORDER = 40
PEOPLE = [
    ("Pseudonyms, for files that leave the house", "pseudonyms"),
    ("Names as they are, to move a whole store", "keep"),
]
FIRST = "pickapic"
"""what Diffusion-DPO trainers read"""


def look(context: Context) -> tuple[str, str]:
    """Statistics, and the newest answers."""
    overviews = context.extras.setdefault("overviews", Overviews(context.store))
    return data_view.shown(overviews()), data_view.gallery(context.store, blur=context.settings.blur)


def export(context: Context, name: str, annotators: str) -> tuple[Path, str]:
    """The file to download, and what is in it."""
    file, counts = data_moves.export(context.store, context.folder / "exports", name, annotators)
    size = file.stat().st_size
    written = f"{name}, {size / 2**20:.1f} MiB: {told(counts)}"
    nothing = not any(value for key, value in counts.items() if key != "dropped")
    advice = " Nothing in the store fits this format." if nothing else ""
    return file, html.page(html.say(f"{written}.{advice}", "plain" if nothing else "good"))


def bring_in(context: Context, path: Path, name: str) -> str:
    """What an import added and dropped."""
    counts = data_moves.bring_in(context.store, path, name)
    return html.page(html.say(f"Read {path.name}: {told(counts)}.", "good"))


def told(counts: dict[str, Any]) -> str:
    """Counts as words, what was dropped and why at the end."""
    parts = [f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items() if isinstance(value, int)]
    dropped = counts.get("dropped") or {}
    left = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    return (", ".join(parts) or "nothing") + (f"; left out: {left}" if left else "; nothing was left out")


def imports(context: Context) -> Path:
    """The folder for files too large for a browser."""
    return context.folder / "imports"


def uploads(context: Context) -> int:
    """MiB that may be uploaded; 0 when the server takes no uploads."""
    return int(getattr(context.settings, "upload_mib", 0))


def build(context: Context) -> None:
    wires = Wires(context)
    gr.HTML(html.style(), apply_default_css=False)
    numbers = gr.HTML(elem_id="data-numbers", apply_default_css=False)
    known = [(data_moves.title(name), name) for name in transfer.formats()]
    gr.HTML(html.page(html.words("Export", "h3")), apply_default_css=False)
    with gr.Row():
        kind = gr.Dropdown(known, value=FIRST, label="Format", scale=2, elem_id="data-format", min_width=220)
        people = gr.Dropdown(PEOPLE, value="pseudonyms", label="Annotators", elem_id="data-people", min_width=220)
        write = gr.Button("Export", variant="primary", elem_id="data-export", elem_classes="vf-go", min_width=120)
    said = gr.HTML(elem_id="data-said", apply_default_css=False)
    ready = gr.DownloadButton("Download the export", visible=False, elem_id="data-download")
    read = _import_form(context, known)
    gallery = gr.HTML(elem_id="data-recent", apply_default_css=False)
    timer = gr.Timer(SLOW, active=False)

    def written(name: str, annotators: str) -> list[Any]:
        file, words = export(context, name, annotators)
        return [gr.update(value=str(file), visible=True), words]

    def arrive() -> list[Any]:
        choices = data_moves.waiting(imports(context))
        return [*look(context), gr.Timer(SLOW, active=True), gr.update(choices=choices), gr.skip()]

    def taken(name: str, upload: str | None, waiting: str | None) -> list[Any]:
        if not upload and not waiting:
            raise InputError("nothing to import: choose a file first")
        path = Path(upload) if upload else data_moves.named(imports(context), str(waiting))
        words = bring_in(context, path, name)
        return [words, *look(context), gr.update(value=None), gr.update(value=None)]

    wires.on(write.click, written, [kind, people], [ready, said], said, busy=True)
    wires.on(read["go"].click, taken, [read["kind"], read["upload"], read["waiting"]],
             [read["said"], numbers, gallery, read["upload"], read["waiting"]], read["said"], busy=True)  # fmt: skip
    wires.on(timer.tick, lambda: [*look(context), gr.skip()], [], [numbers, gallery, said], said)
    wires.arrive(arrive, [], [numbers, gallery, timer, read["waiting"], said], said)


def _import_form(context: Context, known: list[tuple[str, str]]) -> dict[str, Any]:
    """Where files come in: from the browser, where the server takes uploads, and from the folder `imports`."""
    limit = uploads(context)
    gr.HTML(html.page(html.words("Import", "h3")), apply_default_css=False)
    with gr.Row():
        kind = gr.Dropdown(known, value="jsonl", label="Format", elem_id="data-read-format", min_width=220)
        upload = gr.File(
            label=f"A file, or a zip of a folder (up to {limit} MiB)", visible=limit > 0, type="filepath",
            file_types=sorted([*data_moves.READ, ".zip"]), elem_id="data-upload", height=160, min_width=220,
        )  # fmt: skip
        waiting = gr.Dropdown([], label="Or something in the folder imports beside the store", allow_custom_value=True,
                              elem_id="data-waiting", min_width=220)  # fmt: skip
        go = gr.Button("Import", elem_id="data-import", elem_classes="vf-go", min_width=120)
    said = gr.HTML(elem_id="data-import-said", apply_default_css=False)
    return {"kind": kind, "upload": upload, "waiting": waiting, "go": go, "said": said}
