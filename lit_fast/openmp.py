"""How the threads of parallel operations wait for the next one."""

from __future__ import annotations

import os

__all__ = ["SPINS", "share_cores"]

# A tenth of a millisecond: between the operations of a step nobody falls asleep (benchmarks/beside.py).
SPINS = "10000"


def share_cores() -> None:
    """Let OpenMP's threads spin only briefly while they wait, unless the environment says how they should.

    PyTorch's wheels bring GCC's OpenMP, whose idle threads spin for milliseconds: on cores that other processes use
    too, they take from everyone the time in which the work would be done. Read once, when torch is loaded: of no effect
    after that.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
