"""The database: prompts, samples, images by content hash, and feedback, which is append-only and the only truth.

What lives here: `open(url) -> Store`, the tables and their numbered migrations, verify and stats; file layouts of
other tools in `formats/`.
To add a table or column: change `tables.py` and put the next number into `migrations/versions/`; to add a format: one
file in `formats/`.
May import: types.records, types.files and plugins. Never torch, never gradio.
"""

from __future__ import annotations

from visfeedback.store.core import Store, open, url_of

__all__ = ["Store", "open", "url_of"]
