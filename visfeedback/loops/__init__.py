"""Whole-river programs whose stages alternate: drawing, feedback and learning take turns.

What lives here: one file per program with ``Settings`` (its knobs) and
``run(settings, out, resume, progress, command) -> summary``; the file name is the ``[loop] name`` of its presets.
What programs need beside that is in files with an underscore.
To add one: such a file and a preset in ``configs/loops``. May import everything but app and cli.
"""
