"""Most memory that this process has used."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_mib() -> int:
    """Most memory this process has used, MiB; on a GPU the GPU's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return host_peak_mib()


def host_peak_mib() -> int:
    """Most memory of the host that this process has used, MiB; 0 on a system that does not say (Windows)."""
    if STATUS.exists():  # ru_maxrss begins at what the parent process had
        line = next((line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")), "")
        if line:
            return int(line.split()[1]) // 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)  # bytes on macOS, KiB elsewhere
