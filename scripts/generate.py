"""`visfeedback generate` on several processes: `accelerate launch scripts/generate.py --model M ... --out DIR`."""

from __future__ import annotations

import sys

from visfeedback.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
