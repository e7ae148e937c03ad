"""Errors as a user should see them: one paragraph, an exit code, no traceback."""

from __future__ import annotations

import os
import sys
import traceback

import typer

__all__ = ["BAD_INPUT", "INTERRUPTED", "NOT_FINITE", "explain"]

BAD_INPUT, NOT_FINITE, INTERRUPTED = 2, 3, 130
# Typer brings its own copy of click, or not, depending on its version; the base classes are found from here.
_ClickException = typer.BadParameter.__mro__[2]
_USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError)


def explain(error: Exception) -> int:
    """Print ``error`` as one paragraph on stderr and return the exit code.

    ``LIT_FAST_TRACEBACK=1`` in the environment prints the traceback before it.

    Raises:
        Exception: ``error`` itself, where no user can have caused it.
    """
    if isinstance(error, _ClickException):
        return _say(_usage(error), BAD_INPUT)
    if isinstance(error, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    if not isinstance(error, _USER_ERRORS):
        raise error
    if os.environ.get("LIT_FAST_TRACEBACK"):
        traceback.print_exception(error)
    return _say(_message(error), _code(error))


def _say(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
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
    # Only a trainer raises it, and importing the trainer to compare types would load torch.
    return NOT_FINITE if type(error).__name__ == "NonFiniteLoss" else BAD_INPUT
