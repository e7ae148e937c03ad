"""SIGINT and SIGTERM: finish the step, save, leave with a message. A second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from lit_fast.errors import Interrupted

__all__ = ["STOP_WITH_STDIN", "SignalWatch", "stop_with_stdin", "stopped"]

STOP_WITH_STDIN = "LIT_FAST_STOP_WITH_STDIN"  # in the environment of a process that another one has started


def stop_with_stdin() -> None:
    """Where that is set: a SIGTERM to this process when its standard input ends, which it does when its parent dies."""
    if STOP_WITH_STDIN in os.environ:
        threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def stopped(name: str, by: str, step: int) -> Interrupted:
    """The error that run ``name`` ends with when ``by`` (a signal) stopped it after ``step``."""
    return Interrupted(
        f"{name}: stopped by {by} after step {step}; everything up to it is saved. The same command with --resume goes "
        "on from there (in Python resume=True)"
    )


class SignalWatch:
    """While active, the first SIGINT or SIGTERM only sets `requested`; the handlers before it come back at the end.

    A signal that was ignored stays ignored: a job started in the background is not to be stopped from the keyboard.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        self._restore()  # the next one is taken as it would be without us

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
