"""Feedback becomes training data: pure functions of records.

What lives here: `pairs.py` (feedback -> preferences), `files.py` (pairs files -> rows).
To add one: a module with functions of records; no state, no database, no tensors.
May import: types.records and plugins.
"""
