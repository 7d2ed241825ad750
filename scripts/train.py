"""`visfeedback train` on several processes: `accelerate launch scripts/train.py CONFIG.toml --out DIR [flags]`."""

from __future__ import annotations

import sys

from visfeedback.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
