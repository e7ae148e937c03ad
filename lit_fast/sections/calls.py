"""Stand in for a module's calls while a model runs: outside of compiled code and hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["Run", "in_place_of_calls", "uncompiled"]

T = TypeVar("T")
Run = Callable[..., Any]

# ``Module.__call__`` calls this attribute where there is one: ``Module.compile`` puts its compiled function there.
_CALLED = "_compiled_call_impl"


def uncompiled(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function outside of ``torch.compile``, where that is at work; what it calls may be compiled itself."""
    if "torch._dynamo" in sys.modules:  # loading it takes a second, which nobody who does not compile should wait
        if function not in _DISABLED:
            _DISABLED[function] = torch.compiler.disable(function)
        function = _DISABLED[function]
    return function(*args, **kwargs)


_DISABLED: dict[Callable[..., Any], Callable[..., Any]] = {}


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
