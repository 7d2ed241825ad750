"""Is the tuned model better? Base against tuned on the same prompts and seeds, with intervals and honest pictures.

To add a measure of single images: hand ``compare`` a function of an image (``measures``); to add a statistic:
``statistics.py``. May import: types, store, rewards, scoring, sampling, preferences, shapes, backbones, report.
"""
