"""Many images x many prompts x several rewards: decoded once, encoded once, cached, shared by processes, resumable.

The way of an image: ``sources`` lists it, ``pairing`` gives it prompts, ``plan`` finds what has to be scored,
``claims`` hands out shards of it, ``feed`` decodes and preprocesses in threads, ``engine`` runs the networks,
``journal`` keeps every score, ``merge`` writes the table, ``summary`` and ``page`` say what is in it; ``run`` is all of
that in order, ``api`` the same for images in memory (``vf.score``).
To add a kind of source: a class with ``items`` and ``fetch`` beside the others and a line in ``sources.open_source``;
a kind of table: a writer and a reader in ``tables``. May import: types, rewards, store, report.
"""
