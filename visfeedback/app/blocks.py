"""The Gradio side: Compare in the first tab, then a tab for each file of `tabs/`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio import themes

from visfeedback.app import pages
from visfeedback.app import tabs as folder
from visfeedback.app.context import Context

SCREEN = "<visfeedback-compare></visfeedback-compare>"
HEAD = '<script type="module" src="/screen/compare.js"></script><link rel="icon" href="/screen/icon.svg">'
STACK = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif")


ACCENT = themes.Color(
    "#eef7f4", "#d5ece5", "#abd9cc", "#7cc3b0", "#3f9f8a", "#0b6b5b", "#0a5a4d", "#094b40", "#083d35", "#07312b",
    "#051f1b", name="accent",
)  # fmt: skip


def found() -> list[Any]:
    """The modules of `tabs/` in their order."""
    names = [info.name for info in pkgutil.iter_modules(folder.__path__) if not info.name.startswith("_")]
    modules = [importlib.import_module(f"{folder.__name__}.{name}") for name in sorted(names)]
    return sorted((m for m in modules if hasattr(m, "build")), key=lambda module: getattr(module, "ORDER", 50))


def make(context: Context, tabs: Iterable[Any] | None = None) -> gr.Blocks:
    with gr.Blocks(title=context.settings.title, analytics_enabled=False, fill_width=True) as page:
        with gr.Tab("Compare", id="compare"):
            gr.HTML(SCREEN, elem_id="compare", apply_default_css=False)
        for module in found() if tabs is None else tabs:
            with gr.Tab(module.NAME, id=module.__name__.rpartition(".")[2]):
                module.build(context)
    return page


def mount(app: FastAPI, context: Context, tabs: Iterable[Any] | None = None) -> None:
    """At the root, behind our own routes. Nobody's files are open but the archives that the app wrote to be fetched."""
    gr.mount_gradio_app(
        app, make(context, tabs), path="/", show_error=False, ssr_mode=False, enable_monitoring=False, pwa=False,
        max_file_size=f"{context.settings.upload_mib}mb", allowed_paths=[str(context.folder / "exports")],
        footer_links=[], theme=theme(), css_paths=pages.STATIC / "gradio.css", head=HEAD,
    )  # fmt: skip


def theme() -> themes.Base:
    """The colours of our reports; no fonts from elsewhere."""
    calm = themes.Base(
        primary_hue=ACCENT, secondary_hue="stone", neutral_hue="stone", font=STACK,
        font_mono=("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace"), radius_size="lg",
    )  # fmt: skip
    return calm.set(
        body_background_fill="#faf9f7", body_background_fill_dark="#141413",
        body_text_color="#1d1c1a", body_text_color_dark="#edebe7",
        block_background_fill="#ffffff", block_background_fill_dark="#1d1c1b",
        block_border_color="#e3dfd8", block_border_color_dark="#34322f",
        button_primary_background_fill="#0b6b5b", button_primary_background_fill_hover="#0a5a4d",
        button_primary_background_fill_dark="#0f7a68", button_primary_text_color="#ffffff",
    )  # fmt: skip
