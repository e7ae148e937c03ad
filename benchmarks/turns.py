"""Several processes that get ready beside each other, then measure one after the other, with nothing else running."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """What the processes agree by.

    Args:
        folder: the same one for all of them.
        count: how many they are.
        deadline: of ``time.monotonic``; later nobody is waited for.
    """

    def __init__(self, folder: Path, count: int, deadline: float) -> None:
        self._folder, self._count, self._deadline = folder, count, deadline
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Entered when all are ready or the time is up, by one at a time."""
        self.ready()
        while len(list(self._folder.glob("ready-*"))) < self._count and time.monotonic() < self._deadline:
            time.sleep(0.05)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back with the file, also by a process that dies
            yield

    def ready(self) -> None:
        """Nobody need wait for this process any more: it is ready, or has ended."""
        (self._folder / f"ready-{os.getpid()}").touch()
