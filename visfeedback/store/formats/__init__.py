"""File layouts of other tools, and our own.

What lives here: one file per format, found by its name; what several share is in files with an underscore. To add one:
a module with `CARRIES` (what survives write -> read), `read(path, store) -> dict` (what was added, and under "dropped"
what was left out, by reason) and `write(store, path, people) -> dict` (what was written, and "dropped" likewise).
Both stream: memory does not grow with the file. May import: the store room, types.records, types.files.
"""
