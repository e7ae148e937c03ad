"""Errors as a user should see them: one paragraph, an exit code, no traceback."""

from __future__ import annotations

import os
import sys
import traceback

import typer

__all__ = ["BAD_INPUT", "INTERRUPTED", "NOT_FINITE", "WORKER_LOST", "explain", "rank"]

BAD_INPUT, NOT_FINITE, WORKER_LOST, INTERRUPTED = 2, 3, 4, 130
# What happens to all processes of a run alike, and is told by the first of each machine.
_SHARED = ("ConfigError", "FirstFailed", "Interrupted", "NonFiniteLoss", "SharingError")
# Typer brings its own copy of click, or not, depending on its version; the base classes are found from here.
_ClickException = typer.BadParameter.__mro__[2]
_USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError)


def rank() -> int:
    """Which of the processes started by torchrun this is; 0 for one alone."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def explain(error: Exception) -> int:
    """Print ``error`` as one paragraph on stderr and return the exit code.

    ``LIT_FAST_TRACEBACK=1`` in the environment prints the traceback before it.

    Raises:
        Exception: ``error`` itself, where no user can have caused it.
    """
    if _told_by_another(error):
        return BAD_INPUT if isinstance(error, _ClickException) else _code(error)
    if isinstance(error, _ClickException):
        return _say(_usage(error), BAD_INPUT)
    if isinstance(error, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    if not isinstance(error, _USER_ERRORS):
        raise error
    if os.environ.get("LIT_FAST_TRACEBACK"):
        traceback.print_exception(error)
    prefix = f"rank {rank()}: " if rank() else ""
    return _say(prefix + _message(error), _code(error))


def _told_by_another(error: Exception) -> bool:
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    shared = isinstance(error, _ClickException | typer.Abort) or type(error).__name__ in _SHARED
    return rank() > 0 and not first_here and shared


def _say(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _usage(error: Exception) -> str:
    """A mistake in the command line itself, and where to read on."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    return message if context is None else f"{message} (see `{context.command_path} --help`)"


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the package {error.name!r} is not installed here: pip install 'lit_fast[all]'"
    return text


def _code(error: Exception) -> int:
    from lit_fast.training.interrupt import Interrupted

    if isinstance(error, Interrupted):
        return INTERRUPTED
    # Only training raises these, and importing it to compare types would load torch.
    return {"NonFiniteLoss": NOT_FINITE, "WorkerLost": WORKER_LOST}.get(type(error).__name__, BAD_INPUT)
