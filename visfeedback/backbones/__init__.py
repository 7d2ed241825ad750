"""Networks: one file per diffusers family, each a ``visfeedback.types.protocols.Backbone``; load.py finds the file.

To add a family: one file with ``PIPELINES`` (the diffusers class names it serves), ``LOAD_OPTIONS`` (what
``from_pretrained`` must be told) and ``Backbone`` (the class, built from a pipeline). Nothing is registered anywhere.
May import types, diffusion, and diffusers, peft, transformers; never rewards or methods.
"""
