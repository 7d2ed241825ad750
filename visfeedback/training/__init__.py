"""The one training loop and what feeds it.

`fit.py` is the loop, `step.py` one step of it, `settings.py` what a preset may say, `data.py` where pairs come from,
`batches.py` how they become tensors, `cache.py` and `tables.py` work that is done once, `policy.py` the network that
learns, `looks.py` and `monitor.py` what is measured beside it, `checkpoint.py` and `run.py` the folder, `wrap_up.py`
and `pages.py` what a finished run leaves.
To add a method, write `methods/NAME.py`: nothing here changes. To add a kind of data, add a source to `data.py`.
May import: types, config, store, sampling, rewards, preferences, methods, backbones, report.
"""
