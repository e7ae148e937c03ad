"""Arguments that are of another type than they should be: told by name where they are given."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

__all__ = ["expect", "expect_integer", "expect_number", "expect_switches", "shown"]


def shown(value: Any) -> str:
    """What was got, in few words: small values as they are, else their type."""
    if value is None or isinstance(value, bool | Integral | Real):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "...")
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def expect(name: str, value: Any, kind: type | tuple[type, ...], wanted: str, mend: str = "") -> None:
    """Raises TypeError where ``value`` is no ``kind``, which ``wanted`` describes."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {wanted}, got {shown(value)}" + (f"; {mend}" if mend else ""))


def expect_integer(name: str, value: Any, wanted: str) -> None:
    """Raises TypeError where ``value`` is no whole number; True is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected {wanted}, got {shown(value)}")


def expect_number(name: str, value: Any, wanted: str) -> None:
    """Raises TypeError where ``value`` is no number; True is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {wanted}, got {shown(value)}")


def expect_switches(**switches: Any) -> None:
    """Raises TypeError where one is neither True nor False: ``"no"`` would count as True."""
    for name, value in switches.items():
        expect(name, value, bool, "True or False")
