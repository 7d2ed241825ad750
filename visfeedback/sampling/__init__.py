"""Images out of a pipeline that is handed in: seeded generation, reading samples back, drift from the reference.

An image depends on its own seed alone, never on the batch it was made in. To add a way of sampling: one file with a
function of a pipeline or backbone. May import types and diffusion; never rewards or store.
"""
