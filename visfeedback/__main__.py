"""``python -m visfeedback`` is the ``visfeedback`` command."""

from __future__ import annotations

import sys

from visfeedback.cli import main

if __name__ == "__main__":
    sys.exit(main())
