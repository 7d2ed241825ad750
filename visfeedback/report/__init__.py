"""One look for every page that is written: sections of blocks, inline pictures and plots, no network.

To add a block: a dataclass in ``blocks.py`` and a template of the same name in ``templates/``.
May import: types.
"""
