"""Errors as a user should see them: one paragraph and an exit code, without a traceback where the words suffice."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from lit_fast.errors import Interrupted, LitFastError, Signal
from lit_fast.tables import printable_lines

__all__ = ["explain", "rank"]

# Typer brings its own copy of click, or not, depending on its version; the base classes are found from here.
_ClickException = typer.BadParameter.__mro__[2]
_USER_ERRORS = (LitFastError, ValueError, OSError, RuntimeError, ImportError)
# RuntimeErrors of torch that are no defect of a program: on a GPU; on the CPU; where there is no GPU.
_OF_THE_MACHINE = ("out of memory", "can't allocate memory", "not enough memory", "No CUDA GPUs", "NVIDIA driver")


def rank() -> int:
    """Which of the processes started by torchrun this is; 0 for one alone."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def explain(error: Exception) -> int:
    """Print ``error`` as one paragraph on stderr and return the exit code.

    The traceback comes before it if ``LIT_FAST_TRACEBACK=1`` is in the environment, and where the error may be a
    defect of torch.

    Raises:
        Exception: ``error`` itself, where no user can have caused it.
    """
    if _told_by_another(error):
        return _code(error)
    if isinstance(error, _ClickException):
        return _say(_usage(error), _code(error))
    if isinstance(error, typer.Abort):
        return _say("interrupted", _code(error))
    if not isinstance(error, _USER_ERRORS) or isinstance(error, Signal):
        raise error
    if os.environ.get("LIT_FAST_TRACEBACK") or _unexplained(error):
        traceback.print_exception(error)
    prefix = f"rank {rank()}: " if rank() else ""
    return _say(prefix + _message(error), _code(error))


def _told_by_another(error: Exception) -> bool:
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    usual = isinstance(error, _ClickException | typer.Abort)
    return rank() > 0 and not first_here and (usual or getattr(error, "in_every_process", False))


def _unexplained(error: Exception) -> bool:
    """Whether it is a RuntimeError of torch's, whose message says little without the place it comes from."""
    foreign = isinstance(error, RuntimeError) and not isinstance(error, LitFastError)
    return foreign and not any(words in str(error) for words in _OF_THE_MACHINE)


def _say(message: str, code: int) -> int:
    print(printable_lines(f"error: {message}"), file=sys.stderr, flush=True)
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
        return f"the package {error.name!r} is not installed here: pip install '.[all]' in a checkout of lit_fast"
    return text


def _code(error: Exception) -> int:
    if isinstance(error, typer.Abort):
        return Interrupted.exit_code
    return error.exit_code if isinstance(error, LitFastError) else LitFastError.exit_code
