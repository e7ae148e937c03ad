"""Stand in for a module's calls while a model runs: outside of compiled code and hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["Run", "in_place_of_calls"]

Run = Callable[..., Any]

# ``Module.__call__`` calls this attribute where there is one: ``Module.compile`` puts its compiled function there.
_CALLED = "_compiled_call_impl"


@contextmanager
def in_place_of_calls(modules: Sequence[tuple[nn.Module, Callable[[Run], Run]]]) -> Iterator[None]:
    """Within the context each module, called, runs what its function makes of what it would run.

    The modules are afterwards what they were: nothing is registered, and no attribute is left.
    """
    before = [(module.__dict__, module.__dict__.get(_CALLED)) for module, _ in modules]
    try:
        for module, make in modules:
            module.__dict__[_CALLED] = make(module.__dict__.get(_CALLED) or module._call_impl)
        yield
    finally:
        for attributes, compiled in before:
            attributes.pop(_CALLED, None)
            if compiled is not None:
                attributes[_CALLED] = compiled
