"""What a network of a user's own does, as a hash: so that a run is not gone on with by another one of the same shapes.

Looked at are the classes of all modules and what they say of themselves (``extra_repr``), plain values and functions
that they hold, and the code that is not an installed package's: forward, and the functions and values that it uses.
Comments and formatting do not count.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any, cast

from torch import nn

from lit_fast.sections.model import SplitModel
from lit_fast.sections.traced import TracedPart

__all__ = ["code_of", "cuts_of", "forward_of"]

_ADDRESS = re.compile(r"\b0x[0-9a-f]+\b")
_INSTALLED = ("site-packages", "dist-packages", "/lib/python")


def forward_of(network: nn.Module) -> str:
    """A hash of what runs when a network, split or not, is called."""
    model, parts = (network.model, network.parts) if isinstance(network, SplitModel) else (network, ())
    lines = [line for name, module in model.named_modules() for line in _of_module(name, module)]
    for part in parts:
        lines += part.sources if isinstance(part, TracedPart) else ()
    return _hashed(lines)


def cuts_of(model: SplitModel) -> list[Any]:
    """Where it is cut, fit for JSON."""
    stem = getattr(getattr(model, "cuts", None), "stem", None)
    return [model.how, list(model.at), stem, None if model.blocks is None else [list(names) for names in model.blocks]]


def code_of(function: Any) -> str:
    """A hash of the code of a function, or of an object that is called."""
    if isinstance(function, FunctionType | MethodType):
        return _hashed(_of_function(function, None, set()))
    return _hashed(_of_object(function, "__call__", set()))


def _hashed(lines: Iterable[str]) -> str:
    return hashlib.sha256(_ADDRESS.sub("", "\n".join(lines)).encode(errors="replace")).hexdigest()[:16]


def _of_module(name: str, module: nn.Module) -> Iterator[str]:
    try:
        extra = module.extra_repr()
    except Exception:  # whatever a user's raises
        extra = ""
    yield f"{name}: {type(module).__qualname__}({extra})"
    if _is_installed(type(module).__module__):
        for key, value in sorted(vars(module).items()):
            if not key.startswith("_") and key != "training":
                yield from _of_value(key, value, None, set())
    else:
        yield from _of_object(module, "forward", set())


def _of_object(owner: Any, method: str, known: set[int]) -> Iterator[str]:
    yield type(owner).__qualname__
    yield from _of_value(method, getattr(owner, method, None), owner, known)


def _of_value(name: str, value: Any, owner: Any, known: set[int]) -> Iterator[str]:
    """Of a plain value, or of a function; of anything else nothing."""
    if _is_plain(value):
        yield f"{name} = {value!r}"
    elif isinstance(value, FunctionType | MethodType):
        yield f"{name} = {value.__qualname__}"
        yield from _of_function(value, getattr(value, "__self__", owner), known)
    elif isinstance(value, BuiltinFunctionType):
        yield f"{name} = {value.__name__}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | complex | str | bytes)


def _of_function(function: FunctionType | MethodType, owner: Any, known: set[int]) -> Iterator[str]:
    """Its code, and what that uses by name: globals, what it encloses, and what its owner holds."""
    if isinstance(function, MethodType):
        function = cast(FunctionType, function.__func__)
    if id(function) in known or _is_installed(function.__module__):
        return
    known.add(id(function))
    yield _text(function)
    yield from _of_value("defaults", function.__defaults__, None, known)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        with contextlib.suppress(ValueError):  # an empty cell
            yield from _of_value(name, cell.cell_contents, None, known)
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield from _of_value(name, function.__globals__[name], None, known)
        elif owner is not None and name != "training":
            value = inspect.getattr_static(owner, name, None)
            yield from _of_value(name, getattr(value, "fget", getattr(value, "__func__", value)), owner, known)


def _text(function: FunctionType) -> str:
    try:
        if function.__name__ == "<lambda>":  # its source is that of the whole statement
            raise TypeError
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, SyntaxError, TypeError):  # typed in
        return "\n".join(_instructions(function.__code__))


def _instructions(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _instructions(value)
        else:
            yield repr(value)


def _names(code: CodeType) -> list[str]:
    nested = [name for value in code.co_consts if isinstance(value, CodeType) for name in _names(value)]
    return sorted({*code.co_names, *nested})


def _is_installed(module: str | None) -> bool:
    """Whether a module is a package's or Python's own, whose version stands for its code."""
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if file is None:
        return module in sys.builtin_module_names or (module or "") in sys.stdlib_module_names
    top = (module or "").partition(".")[0]
    return top in ("torch", "lit_fast") or top in sys.stdlib_module_names or any(mark in file for mark in _INSTALLED)
