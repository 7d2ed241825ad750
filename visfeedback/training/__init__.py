"""The one training loop and what feeds it.

`fit.py` is the loop, `step.py` one step of it, `settings.py` (and `settings_online.py`) what a preset may say,
`sources.py` what the loop knows of its data and `openers.py` which source a method gets:

    pairs     `pair_source.py`: `data.py` where they come from, `batches.py` how they become tensors
    scored    `scored.py` on `images.py` and `stored_images.py`, or on fresh `rounds.py`
    rollouts  `paths.py` on fresh `rounds.py` or on `stored_paths.py`
    prompts   in `sources.py`

`scorer.py` asks the reward, `weighing.py` the method what scores are worth; `cache.py` and `tables.py` are work that
is done once, `policy.py` the network that learns, `looks.py` and `monitor.py` what is measured beside it,
`checkpoint.py` and `run.py` the folder, `wrap_up.py` and `pages.py` what a finished run leaves.
To add a method, write `methods/NAME.py`: nothing here changes. To add a kind of data, add an opener.
May import: types, config, store, prompts, sampling, rewards, preferences, methods, backbones, report.
"""
