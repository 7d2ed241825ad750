"""File layouts of other tools, and our own.

What lives here: one file per format, found by its name. To add one: a module with `read(path, store) -> dict` (what
was added) and `write(store, path) -> dict` (what was written, and under "dropped" what the format cannot carry, by
reason). May import: the store room, types.records, types.files.
"""
