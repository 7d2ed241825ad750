"""The collection app: people compare images in a browser, and what they say becomes training.

What lives here: the Compare screen (`static/`, plain JavaScript) and its routes (`routes.py`), log-in, the guard in
front of everything, and one file per Gradio tab in `tabs/`.
To add a tab: `tabs/NAME.py` with `NAME`, the words on it, and `build(context)`; nothing is registered anywhere.
May import: types.records, types.files, config, store, prompts, feedback, preferences, report. Never torch: what draws
or trains is handed in through `protocols.py` by `visfeedback collect`, or is a process of its own.
"""
