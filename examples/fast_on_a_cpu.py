"""Settings that Paddle reads when it is imported: import this first. What is set already stays.

Paddle takes one thread unless it is told how many. Its MKL takes a slow path on processors of AMD
unless it is told not to; on those of Intel the setting changes nothing.
"""

from __future__ import annotations

import os

SETTINGS = {
    "OMP_NUM_THREADS": str(os.cpu_count() or 1),
    "MKL_DEBUG_CPU_TYPE": "5",
    "FLAGS_use_onednn": "1",
}

for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
