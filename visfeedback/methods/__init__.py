"""Alignment methods: each file is a frozen config with a loss.

To add one: write `methods/NAME.py` with a pydantic model of its knobs that has `eats` and `loss(backbone, batch, ctx)`
(see `visfeedback.types.protocols.Method`), export it as `Method`, add `configs/NAME/*.toml` and a test. Nothing is
registered anywhere; files beginning with an underscore are not methods.
May import: types, diffusion, sampling. Never diffusers, peft, accelerate, store or rewards: a method knows
batches of tensors and a backbone, the loop knows devices and files.
"""
