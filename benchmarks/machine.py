"""Where a benchmark runs, and how memory is kept there."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path


def processor() -> str:
    """Its name, as the system knows it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def keep_freed_memory() -> bool:
    """Make glibc keep what a program frees, until the end; whether it does.

    Without it large blocks are given back to the system, and faulted in again in the next step, or
    are not: that depends on what happens to lie behind them. Of one and the same program, one run
    has no page faults in a step and the next has 16,000, a tenth of the time of a small step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another library, or system
        return False
    # The thresholds for blocks of their own (the largest allowed), and for giving back.
    return bool(mallopt(-3, 32 << 20) and mallopt(-1, (1 << 31) - 1))


def give_back_freed_memory() -> None:
    """Give it back all the same, to see what is in use."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
