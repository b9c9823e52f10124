"""A program of ``tests/programs`` in one process or in several, and what came out on each rank."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAMS = Path(__file__).parent / "programs"


def posix_only() -> None:
    """Skip a test that forks, sets limits, or whose processes end by a signal."""
    if os.name != "posix":
        pytest.skip("this system neither forks nor has POSIX's limits and signals")


def command(program: str, *words: str, ranks: int, folder: Path) -> list[str]:
    """The words that start it; logs of several processes go into the folder."""
    launch = (
        ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--backend", "gloo",
         "--log_dir", str(folder / "logs")]
        if ranks > 1
        else []
    )  # fmt: skip
    return [sys.executable, *launch, str(PROGRAMS / program), *words]


def results(folder: Path, ranks: int) -> list[dict]:
    """What each rank wrote, from the first on."""
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(ranks)]


def run(program: str, *words: str, ranks: int, folder: Path) -> list[dict]:
    """Run it to the end; what each rank wrote."""
    words = tuple(command(program, *words, ranks=ranks, folder=folder))
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    there = all((folder / f"rank{rank}.pickle").exists() for rank in range(ranks))
    assert there, done.stdout[-3000:] + done.stderr[-2000:]
    return results(folder, ranks)


def furthest(one: dict, other: dict) -> float:
    """The largest difference between the weights of two ranks, or runs."""
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)
