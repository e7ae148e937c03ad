"""How the threads of parallel operations wait for the next one."""

from __future__ import annotations

import os

__all__ = ["sleep_when_idle"]


def sleep_when_idle() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says how they should.

    PyTorch's wheels bring GCC's OpenMP, whose idle threads spin: on cores that other processes use too, they take from
    everyone the time in which the work would be done. Read once, when torch is loaded: of no effect after that.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
