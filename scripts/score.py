"""`visfeedback score` on several processes: `accelerate launch scripts/score.py --images SRC --reward R --out FILE`."""

from __future__ import annotations

import sys

from visfeedback.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
