"""Functions of a user's own by name, ``module:function``: they make networks, datasets, batches, or are targets."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["function", "is_function", "label", "made"]


def is_function(name: str) -> bool:
    """Whether a name says ``module:function``; names of what is built in have no colon."""
    return ":" in name


def label(name: str) -> str:
    """The name as files and tables have it."""
    return name.replace(":", ".")


def function(name: str) -> Callable[..., Any]:
    """The function of that name, its module imported from the working folder or the environment.

    Raises:
        ValueError: no such module or function, or something that cannot be called.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"expected module:function, got {name!r}")
    try:
        with _here():
            found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # of what the module itself imports
        raise ValueError(f"{name}: there is no module {module!r} here or in the environment") from None
    if not callable(found):
        raise ValueError(f"{name}: module {module!r} has no function {attribute!r}")
    return found


def made(name: str) -> Any:
    """What the function of that name returns, called without arguments.

    Raises:
        ValueError: as `function`, or it needs arguments.
    """
    call = function(name)
    try:
        inspect.signature(call).bind()
    except TypeError as error:
        raise ValueError(f"{name}: expected a function without arguments ({error})") from None
    except ValueError:  # of a builtin, whose arguments are not known
        pass
    with _here():
        return call()


@contextmanager
def _here() -> Iterator[None]:
    """The working folder on the path, as `python -m` has it."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
