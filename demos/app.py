"""The collection app with the model that ships with the package: judge, train, and see the adapter win.

    python demos/app.py [--port 7860] [any flag of `visfeedback collect`]

Opens http://127.0.0.1:7860 with pictures that shapes:sd draws while you judge, four at a time to be put in order, for
four in order are six pairs. Answers go to demo.db in this folder.
"""

from __future__ import annotations

import sys

from visfeedback.cli import main

DEMO = [
    "collect", "--store", "sqlite:///demo.db", "--model", "shapes:sd",
    "--ask.kind", "ranking", "--title", "Which image fits the words best?",
    "--invitation", "A small model draws shapes while you judge. After 200 rankings or more, half an hour at nine "
    "seconds each, open the Train tab: it learns from them, and its new images may join the comparison.",
    "--instructions", "Right number, colours and places come first. When several are right, the cleaner one is better; "
    "e says that the next one is as good as the last.",
]  # fmt: skip

if __name__ == "__main__":
    sys.exit(main([*DEMO, *sys.argv[1:]]))
