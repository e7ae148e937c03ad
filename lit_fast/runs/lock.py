"""One process at a time in a run folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from weakref import WeakSet

from lit_fast.errors import RunFolderError

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["RunLock"]


class RunLock:
    """Held by one process from `take` to the end of the ``with`` block, or of the process: it cannot be left behind.

    It is on the folder itself, so there is no file that says it is taken.
    """

    def __init__(self) -> None:
        self._handle: int | None = None

    def take(self, folder: Path) -> None:
        """
        Raises:
            RunFolderError: another process has it.
        """
        if fcntl is None:
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # file systems of a network may know no locks of folders
            raise RunFolderError(
                f"{folder}: another process is training in this folder; wait until it has ended, or choose another one"
            ) from None
        self._handle = handle
        _held.add(self)

    def release(self) -> None:
        """Let others have it."""
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_held: WeakSet[RunLock] = WeakSet()


def _leave_to_parent() -> None:
    """In a process that was forked, such as a worker of a loader, which may outlive the one that has the lock."""
    for lock in list(_held):
        lock.release()


if fcntl is not None:
    os.register_at_fork(after_in_child=_leave_to_parent)
